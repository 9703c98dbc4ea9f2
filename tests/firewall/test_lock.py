# SPDX-License-Identifier: MIT
"""The lock of the rules."""

import subprocess
import sys
from pathlib import Path

import pytest

from nfq_guard.errors import BusyError, UnavailableError
from nfq_guard.firewall.lock import FOLDER, PATIENCE_S, held

UNIT = Path(__file__).parents[2] / "systemd" / "nfq-guard.service"
HOLD = "import sys; from pathlib import Path; from nfq_guard.firewall.lock import held\n"
HOLD += "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_another_holder_is_named_and_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=rf"\(pid {holder.pid}\) is changing the rules"):  # noqa: SIM117 - what raises is the inner one
            with held(tmp_path, 0.1):
                pytest.fail("two hold it")
        holder.communicate()
    with held(tmp_path, 0.1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    assert len(list(tmp_path.iterdir())) == 1
    with held(tmp_path, 0.1):
        pass


def test_only_the_owner_of_the_directory_can_hold_it(tmp_path: Path) -> None:
    """A socket with an abstract name could be held by any local user."""
    folder = tmp_path / "run"
    with held(folder):
        (file,) = folder.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o007 == 0


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder):
        (name,) = (file.name for file in folder.iterdir())
    target = tmp_path / "target"
    (folder / name).symlink_to(target)
    with pytest.raises(UnavailableError, match="cannot be opened"):  # noqa: SIM117 - what raises is the inner one
        with held(folder, 0.1):
            pytest.fail("the link was followed")
    assert not target.exists()


def test_another_name_of_a_file_is_not_taken(tmp_path: Path) -> None:
    """Root gives the file to the owner of the directory, who may have made the name."""
    folder = tmp_path / "run"
    with held(folder):
        (name,) = (file.name for file in folder.iterdir())
    target = tmp_path / "target"
    target.touch()
    (folder / name).hardlink_to(target)
    with pytest.raises(UnavailableError, match="cannot be opened: a file with several names"):  # noqa: SIM117 - what raises is the inner one
        with held(folder, 0.1):
            pytest.fail("the file was taken")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be opened"):  # noqa: SIM117 - what raises is the inner one
        with held(tmp_path / "no" / "such"):
            pytest.fail("it is held")


def test_the_service_has_the_directory_and_more_patience() -> None:
    unit = UNIT.read_text(encoding="ascii").splitlines()
    assert f"RuntimeDirectory={FOLDER.name}" in unit
    (timeout,) = (line.partition("=")[2] for line in unit if line.startswith("TimeoutStartSec="))
    assert float(timeout.removesuffix("s")) / 2 > PATIENCE_S
    assert FOLDER.parent == Path("/run")
