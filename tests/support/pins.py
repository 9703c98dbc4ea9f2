# SPDX-License-Identifier: MIT
"""Pins the dependencies of an installed guard by hash: `make pins`.

The versions are those of constraints.txt. pip fetches the wheels for each version of Python and
each architecture that the guard supports. netfilterqueue has no wheels: its source has a file of
its own.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
WHEELS: Final = ROOT / "requirements.txt"
SOURCES: Final = ROOT / "requirements-source.txt"
SOURCE: Final = "netfilterqueue"
PACKAGES: Final = (
    "jinja2", "markupsafe", "msgspec", SOURCE, "orjson", "prometheus-client", "structlog",
)  # fmt: skip
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
MACHINES: Final = ("x86_64", "aarch64")
_HEAD: Final = "# {}; written by `make pins` from constraints.txt.\n"


def versions() -> dict[str, str]:
    """The versions of constraints.txt, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="ascii").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def fetch(folder: Path) -> None:
    """Have pip download every file that an installation may use."""
    known = versions()
    wheels = [f"{name}=={known[name]}" for name in PACKAGES if name != SOURCE]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    pip += ["--no-deps", "--dest", str(folder)]
    for python in PYTHONS:
        for machine in MACHINES:
            platforms = [f"manylinux2014_{machine}", f"manylinux_2_28_{machine}"]
            words = ["--only-binary=:all:", "--python-version", python]
            words += [word for one in platforms for word in ("--platform", one)]
            subprocess.run([*pip, *words, *wheels], check=True)
    source = f"{SOURCE}=={known[SOURCE]}"
    subprocess.run([*pip, "--no-build-isolation", "--no-binary=:all:", source], check=True)


def pinned(folder: Path) -> dict[str, str]:
    """The lines of each package, with the hashes of its files in `folder`."""
    sums: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for path in folder.iterdir():
        name = canonicalize_name(path.name.split("-", 1)[0])
        sums[name].add(hashlib.sha256(path.read_bytes()).hexdigest())
    known = versions()
    return {
        name: " \\\n".join(
            [f"{name}=={known[name]}", *(f"    --hash=sha256:{one}" for one in sorted(found))]
        )
        + "\n"
        for name, found in sums.items()
    }


if __name__ == "__main__":
    downloads = Path(sys.argv[1])
    downloads.mkdir(parents=True, exist_ok=True)
    fetch(downloads)
    lines = pinned(downloads)
    source = lines.pop(SOURCE)
    head = _HEAD.format("The wheels that an installed guard runs with")
    WHEELS.write_text(head + "".join(lines.values()), encoding="ascii")
    SOURCES.write_text(_HEAD.format("What is built from its source") + source, encoding="ascii")
