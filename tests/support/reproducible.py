# SPDX-License-Identifier: MIT
"""Builds netfilterqueue and the BPF object twice, and compares byte for byte: `make reproducible`.

pip builds in a new directory each time, so the wheel must not contain a path; the epoch
keeps times out of it, here as in the Makefile. The BPF object is also compared with the committed
one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.pins import ROOT, SOURCES

OBJECT: Final = ROOT / "nfq_guard" / "flows" / "ct_lookup.bpf.o"
_EPOCH: Final = "1704067200"


def build_wheel(folder: Path) -> Path:
    """Build netfilterqueue from the source that requirements-source.txt names."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    words += ["--no-cache-dir", "--no-build-isolation", "--no-deps", "--require-hashes"]
    words += ["--wheel-dir", str(folder), "--requirement", str(SOURCES)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "CFLAGS": "-g0"}
    subprocess.run(words, check=True, env=env)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_object(folder: Path) -> Path:
    """Build the BPF object from a copy of its source in another directory."""
    shutil.copytree(ROOT / "bpf", folder / "bpf")
    made = folder / OBJECT.name
    subprocess.run(["make", "-s", "-C", folder / "bpf", f"OUT={made}"], check=True)
    return made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Compare the builds; returns 1 if two of them differ."""
    base = Path(sys.argv[1]).resolve()
    shutil.rmtree(base, ignore_errors=True)
    differ = False
    for name, build in (("netfilterqueue", build_wheel), ("the BPF object", build_object)):
        found = []
        for number in (1, 2):
            folder = base / f"{name.split()[-1]}-{number}"
            folder.mkdir(parents=True)
            found.append(digest(build(folder)))
        if build is build_object:
            found.append(digest(OBJECT))
        same = len(set(found)) == 1
        differ |= not same
        sys.stdout.write(f"{name}: {'the same' if same else 'DIFFERS'}, {' '.join(found)}\n")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
