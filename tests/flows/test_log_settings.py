# SPDX-License-Identifier: MIT
"""The sysctls of conntrack's log: set, restored, and left alone where they are the host's."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_guard import cli
from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.errors import BusyError, PrivilegeError, UnavailableError
from nfq_guard.flow import Evidence
from nfq_guard.flows import log_settings
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.kernel_log import KernelLog
from nfq_guard.flows.source import EvidenceSource
from nfq_guard.lab.netns import Namespace
from tests.support.shared_folder import removed_when_made

pytestmark = pytest.mark.kernel

ON = {"nf_log/2": "nfnetlink_log", "nf_log/10": "nfnetlink_log", "nf_conntrack_log_invalid": "255"}


def values() -> dict[str, str]:
    return {name: (log_settings.SYSCTLS / name).read_text().strip() for name in ON}


def put(name: str, value: str) -> None:
    (log_settings.SYSCTLS / name).write_text(value)


def reader() -> KernelLog:
    return KernelLog(guess_rules(os.uname().release), log_settings.is_on)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that replaces the host's."""
    monkeypatch.setattr(log_settings, "FOLDER", tmp_path / "kernel-log")
    return tmp_path / "kernel-log"


@pytest.fixture
def before(folder: Path, namespace: Callable[[str], Namespace]) -> Iterator[dict[str, str]]:
    """The sysctls of a new network namespace, in which the test runs."""
    assert not folder.exists()
    with namespace("log").entered():
        CtnetlinkFlows().close()  # loads the module of conntrack
        found = values()
        assert found["nf_conntrack_log_invalid"] == "0"
        yield found


def test_on_and_off(before: dict[str, str], folder: Path) -> None:
    assert log_settings.obstacle("one") is not None
    log_settings.turn_on("one")
    assert values() == ON
    assert log_settings.is_on()
    assert log_settings.obstacle("one") is None
    assert (log_settings.logs_for(), log_settings.unfit()) == ("one", None)
    (file,) = folder.iterdir()
    assert file.name == str(Path("/proc/thread-self/ns/net").stat().st_ino)
    assert [file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777] == [0o644, 0o755]
    log_settings.turn_off("one")
    assert values() == before
    assert not folder.exists()
    log_settings.turn_off("one")
    assert values() == before


def test_twice(before: dict[str, str]) -> None:
    """What was before the first time is restored."""
    log_settings.turn_on("one")
    log_settings.turn_on("one")
    assert values() == ON
    log_settings.turn_off("one")
    assert values() == before


def test_another_reader_after_a_crash(before: dict[str, str], folder: Path) -> None:
    """Our log must not go to another program that reads the group by then."""
    log_settings.turn_on("one")
    with reader(), pytest.raises(BusyError, match="left alone"):
        log_settings.turn_on("one")
    assert values() == before
    assert not folder.exists()


def test_the_next_start_restores_what_a_crash_left(before: dict[str, str]) -> None:
    log_settings.turn_on("crashed")
    assert (
        log_settings.obstacle("one") == "the kernel's log is turned on for another daemon, crashed"
    )
    log_settings.turn_on("one")
    assert log_settings.obstacle("one") is None
    log_settings.turn_off("crashed")
    assert values() == ON
    log_settings.turn_off("one")
    assert values() == before


def test_namespaces_do_not_share_a_file(
    before: dict[str, str], namespace: Callable[[str], Namespace], folder: Path
) -> None:
    log_settings.turn_on("one")
    with namespace("log2").entered():
        assert log_settings.obstacle("one") is not None
        log_settings.turn_on("one")
        assert len(list(folder.iterdir())) == 2
        log_settings.turn_off("one")
        assert values() == before
    assert values() == ON
    log_settings.turn_off("one")


def test_the_folder_is_removed_by_another_daemon_meanwhile(
    before: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with removed_when_made(folder, monkeypatch) as removals:
        log_settings.turn_on("one")
    assert removals == [folder] * 3
    assert log_settings.obstacle("one") is None
    log_settings.turn_off("one")
    assert values() == before


def test_a_host_that_logs_is_left_alone(before: dict[str, str], folder: Path) -> None:
    put("nf_conntrack_log_invalid", "6")
    with pytest.raises(BusyError, match=r"left alone: .*nf_conntrack_log_invalid is 6 already"):
        log_settings.turn_on("one")
    assert values() == before | {"nf_conntrack_log_invalid": "6"}
    assert not folder.exists()
    assert log_settings.unfit() == "net.netfilter.nf_conntrack_log_invalid is 6 already"
    log_settings.turn_off("one")
    assert values()["nf_conntrack_log_invalid"] == "6"


def test_another_reader_of_the_group_is_left_alone(before: dict[str, str]) -> None:
    with (
        reader(),
        pytest.raises(BusyError, match=rf"left alone: .*\(pid {os.getpid()}\) reads NFLOG group 0"),
    ):
        log_settings.turn_on("one")
    assert values() == before


def test_what_others_change_meanwhile_stays(before: dict[str, str]) -> None:
    log_settings.turn_on("one")
    put("nf_conntrack_log_invalid", "17")
    found = log_settings.obstacle("one")
    assert found == "another program has set net.netfilter.nf_conntrack_log_invalid to 17"
    assert not log_settings.is_on()
    log_settings.turn_off("one")
    assert values() == before | {"nf_conntrack_log_invalid": "17"}


def test_a_file_of_another_user_is_not_trusted(before: dict[str, str], folder: Path) -> None:
    log_settings.turn_on("one")
    folder.chmod(0o775)
    assert log_settings.obstacle("one") is not None
    folder.chmod(0o755)
    assert log_settings.obstacle("one") is None
    os.chown(folder, 65534, 0)
    assert log_settings.obstacle("one") is not None
    with pytest.raises(UnavailableError, match="belongs to another user"):
        log_settings.turn_on("one")
    os.chown(folder, 0, 0)
    log_settings.turn_off("one")
    assert values() == before


def test_a_damaged_file_is_replaced(before: dict[str, str], folder: Path) -> None:
    """The original values are lost with it, so the sysctls stay until an operator sets them."""
    log_settings.turn_on("one")
    (file,) = folder.iterdir()
    file.write_bytes(b"{")
    assert log_settings.obstacle("one") is not None
    with pytest.raises(BusyError, match="left alone"):
        log_settings.turn_on("one")
    for name, value in reversed(before.items()):
        put(name, value)


def test_read_only_sysctls(before: dict[str, str], folder: Path) -> None:
    """As in a container: nothing is left behind."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from nfq_guard.flows import log_settings\n"
        f"log_settings.FOLDER = Path({str(folder)!r})\n"
        "try:\n"
        "    log_settings.turn_on('one')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         'mount --bind -o ro /proc/sys /proc/sys && exec "$@"', "sh",
         sys.executable, "-c", program],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("UnavailableError the kernel's log cannot be turned on: ")
    assert not folder.exists()
    assert values() == before


def test_it_takes_root(before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(PrivilegeError, match="takes root"):
        log_settings.turn_on("one")
    assert values() == before


def test_prepare(
    before: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "one.toml"
    config.write_text('[daemon]\nevidence = "kernel-log"\n')
    words = ["prepare", "--config", str(config)]
    assert cli.main([*words, "--user", "root"]) == 0
    assert "NFLOG group 0" in capsys.readouterr().out
    assert values() == ON
    assert cli.main([*words, "--remove"]) == 0
    assert values() == before
    put("nf_conntrack_log_invalid", "6")
    assert cli.main([*words, "--user", "root"]) == 75
    assert "left alone" in capsys.readouterr().err
    config.write_text('[daemon]\nevidence = "ctnetlink"\n')
    assert cli.main([*words, "--user", "root"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_the_source_follows_the_host(before: dict[str, str]) -> None:
    source = EvidenceSource("kernel-log", zones=(0,), instance="one")
    seen = [(source.evidence, source.reason or "")]

    def follow() -> None:
        source.follow()
        seen.append((source.evidence, source.reason or ""))

    try:
        log_settings.turn_on("one")
        follow()
        log = source.log
        assert log is not None
        follow()
        assert source.log is log
        with pytest.raises(BusyError):
            reader()
        put("nf_log/2", "NONE")
        follow()
        log.close()
        put("nf_log/2", "nfnetlink_log")
        with reader():
            follow()
        follow()
    finally:
        source.close()
    log_settings.turn_off("one")
    assert values() == before
    log_, none = Evidence.KERNEL_LOG, Evidence.CTNETLINK
    assert [evidence for evidence, _ in seen] == [none, log_, log_, none, none, log_]
    for turn, words in (
        (0, "`nfq-guard prepare` as root"),
        (1, "the kernel's window cannot be read: chosen by the setting"),
        (3, "another program has set net.netfilter.nf_log.2 to NONE"),
        (4, "reads NFLOG group 0"),
    ):
        assert words in seen[turn][1]


def test_choices(before: dict[str, str]) -> None:
    log_settings.turn_on("one")
    for choice, evidence in (
        ("auto", Evidence.BPF),
        ("bpf", Evidence.BPF),
        ("kernel-log", Evidence.KERNEL_LOG),
        ("ctnetlink", Evidence.CTNETLINK),
    ):
        source = EvidenceSource(choice, zones=(0,), instance="one")  # type: ignore[arg-type] # a str
        assert source.evidence is evidence
        assert (source.reason is None) == (evidence is Evidence.BPF)
        source.close()
    several = EvidenceSource("kernel-log", zones=(0,), instance="one", queues=2)
    assert several.evidence is Evidence.CTNETLINK
    assert "one queue only" in (several.reason or "")
    several.close()
    log_settings.turn_off("one")
    assert values() == before
