# SPDX-License-Identifier: MIT
"""The dependencies of an installation are pinned by hash."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support import pins, sbom

_SUMS = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
_PIN = re.compile(rf"^(\S+)==(\S+) \\\n({_SUMS})", re.MULTILINE)


def test_all_that_the_guard_runs_with_is_pinned() -> None:
    texts = [path.read_text(encoding="ascii") for path in (pins.WHEELS, pins.SOURCES)]
    found = {name: version for text in texts for name, version, _ in _PIN.findall(text)}
    needed = {
        canonicalize_name(one.metadata["Name"]): one.version
        for one in sbom.needed(sbom.OURS, ("", "report"))
    }
    assert found == needed == {name: pins.versions()[name] for name in pins.PACKAGES}
    assert all("://" not in text for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the one wheel that is the same everywhere, which pip has here or is given."""
    path = tmp_path / "wheels"
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    wanted = f"prometheus-client=={pins.versions()['prometheus-client']}"
    made = sorted((pins.ROOT / "build" / "wheels").glob("prometheus_client-*.whl"))
    if made:
        path.mkdir()
        shutil.copy(made[0], path)
    else:
        subprocess.run([*words, "--no-deps", "--dest", str(path), wanted], check=True)
    return path


def test_a_changed_wheel_is_refused(folder: Path, tmp_path: Path) -> None:
    (wheel,) = folder.iterdir()
    lines = re.search(r"^prometheus-client(.*\\\n)*.*\n", pins.WHEELS.read_text(), re.MULTILINE)
    assert lines is not None
    only = tmp_path / "requirements.txt"
    only.write_text(lines[0], encoding="ascii")
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    words += ["--no-index", "--no-deps", "--require-hashes", "--find-links", str(folder)]
    words += ["--target", str(tmp_path / "there"), "--requirement", str(only)]
    subprocess.run(words, check=True)
    with wheel.open("ab") as file:
        file.write(b"\0")
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr
