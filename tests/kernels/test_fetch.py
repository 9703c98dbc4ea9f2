# SPDX-License-Identifier: MIT
"""A download that fails ends the run with one line that names the cause."""

from pathlib import Path

import pytest

from tests.kernels.fetch import fetch_kernels, fetch_root


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that precede those of the machine in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    file.chmod(0o755)


def test_an_unreachable_mirror_is_one_line(tmp_path: Path, programs: Path) -> None:
    program(programs, "apt-get", "exit 0")
    program(
        programs,
        "debootstrap",
        "echo 'I: Retrieving InRelease'; echo 'E: Failed getting release file' >&2; exit 1",
    )
    with pytest.raises(SystemExit) as ended:
        fetch_root(tmp_path, with_owners=False)
    assert ended.value.code == "kernels: debootstrap failed: Failed getting release file"
    assert not (tmp_path / "root.packages").exists()


def test_lists_that_cannot_be_read_are_one_line(tmp_path: Path, programs: Path) -> None:
    program(
        programs,
        "apt-get",
        '[ "$1" != indextargets ] || exit 0\n'
        "echo 'E: Failed to fetch InRelease  Could not resolve host' >&2\n"
        "echo 'E: Some index files failed to download.' >&2; exit 100",
    )
    with pytest.raises(SystemExit) as ended:
        fetch_kernels(tmp_path, ["6.1"])
    why = "Failed to fetch InRelease  Could not resolve host"
    assert ended.value.code == f"kernels: apt-get failed: {why}"


def test_a_program_that_says_nothing_is_named_with_its_status(
    tmp_path: Path, programs: Path
) -> None:
    program(programs, "apt-get", "exit 0")
    program(programs, "debootstrap", "exit 3")
    with pytest.raises(SystemExit, match="kernels: debootstrap failed: status 3"):
        fetch_root(tmp_path, with_owners=False)
