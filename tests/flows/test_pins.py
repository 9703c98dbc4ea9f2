# SPDX-License-Identifier: MIT
"""Pins: who may open them, which are refused, and what replaces them."""

import errno
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from nfq_guard import capabilities, cli
from nfq_guard.errors import PrivilegeError, UnavailableError, UsageError
from nfq_guard.flow import Evidence, FlowTuple
from nfq_guard.flows import bpf, pins
from nfq_guard.flows.libbpf import LoadError, Program
from nfq_guard.flows.open import open_lookup
from nfq_guard.flows.source import EvidenceSource
from nfq_guard.lab.netns import Namespace
from nfq_guard.service.config import DEFAULT_PATH
from tests.support.shared_folder import removed_when_made

USER = "nobody"
NOBODY = pwd.getpwnam(USER)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A BPF file system of the test's own, in place of the host's."""
    mounted = tmp_path / "bpf"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", str(mounted)], check=True)
    monkeypatch.setattr(pins, "BPF_FILES", mounted)
    monkeypatch.setattr(pins, "BOUND", tmp_path / "bound")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def pin(files: Path, number: int = 0) -> Path:
    return files / "nfq-guard" / "one" / f"{bpf.object_hash()}-{number}"


def left(files: Path) -> list[Path]:
    """The files in it, without those that the kernel creates in each such file system."""
    return [each for each in files.iterdir() if each.suffix != ".debug"]


def refusal(instance: str = "one") -> str:
    """Why the pins of an instance are refused; a process with every capability loads instead."""
    with pytest.raises(UnavailableError) as raised:
        pins.open_pinned(instance)
    flows, note = open_lookup((0,), instance)
    flows.close()
    assert flows.evidence is Evidence.BPF
    assert note == str(raised.value)
    assert "\n" not in note
    return note


@pytest.mark.kernel
def test_the_folder_is_removed_by_another_daemon_meanwhile(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with removed_when_made(files / "nfq-guard", monkeypatch) as removals:
        pins.prepare("one", 1, USER)
    assert removals == [files / "nfq-guard"] * 3
    assert (pin(files) / "program").exists()
    pins.remove("one")
    assert left(files) == []


@pytest.mark.kernel
def test_only_the_user_reaches_a_pin_and_root_owns_its_files(files: Path) -> None:
    assert pins.prepare("one", 2, USER) == files / "nfq-guard" / "one"
    found = {}
    for path in sorted((files / "nfq-guard", *(files / "nfq-guard").rglob("*"))):
        status = path.stat()
        found[str(path.relative_to(files))] = (
            f"{status.st_uid}:{status.st_gid} {status.st_mode & 0o7777:04o}"
        )
    root, user, group = "0", NOBODY.pw_uid, NOBODY.pw_gid
    expected = {
        "nfq-guard": f"{root}:{group} 0750",
        "nfq-guard/one": f"{root}:{group} 0750",
    }
    for number in range(2):
        name = str(pin(files, number).relative_to(files))
        expected[name] = f"{user}:{group} 0700"
        expected[f"{name}/memory"] = f"{root}:{group} 0660"
        expected[f"{name}/program"] = f"{root}:{group} 0640"
    assert found == expected


@pytest.mark.kernel
def test_a_pinned_program_looks_flows_up(files: Path) -> None:
    pins.prepare("one", 1, "root")
    flows, note = open_lookup((0,), "one")
    assert (flows.evidence, note) == (Evidence.BPF, None)
    assert flows.lookup([FlowTuple(6, bytes(4), bytes(4), 1, 2)]) == [None]
    pins.remove("one")
    assert left(files) == []
    # Whoever has opened a pin keeps the program.
    assert flows.lookup([FlowTuple(6, bytes(4), bytes(4), 1, 2)]) == [None]
    flows.close()


@pytest.mark.kernel
def test_a_pin_that_root_makes_later_is_taken(files: Path) -> None:
    assert left(files) == []
    source = EvidenceSource("auto", zones=(0,), instance="one", ahead="refused at the start")
    try:
        assert source.evidence is Evidence.CTNETLINK
        assert "refused at the start" in (source.reason or "")
        pins.prepare("one", 1, "root")
        for _ in range(10):
            source.follow()
        assert (source.flows.evidence, source.reason) == (Evidence.BPF, None)
        assert source.flows.lookup([FlowTuple(6, bytes(4), bytes(4), 1, 2)]) == [None]
    finally:
        source.close()


@pytest.mark.kernel
@pytest.mark.usefixtures("files")
def test_a_later_pin_without_libbpf_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> NoReturn:
        raise LoadError(0, "libbpf.so.1 is absent", [])

    pins.prepare("one", 1, "root")
    monkeypatch.setattr(Program, "open_pinned", absent)
    source = EvidenceSource("auto", zones=(0,), instance="one", ahead="refused at the start")
    try:
        for _ in range(21):
            source.follow()
        assert source.evidence is Evidence.CTNETLINK
    finally:
        source.close()


@pytest.mark.kernel
def test_pins_are_found_where_a_unit_mounts_them(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.prepare("one", 1, "root")
    pins.BOUND.mkdir()
    subprocess.run(["mount", "--bind", str(files / "nfq-guard"), str(pins.BOUND)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(pins.BOUND)], check=True)
    try:
        monkeypatch.setattr(pins, "BPF_FILES", pins.BOUND.parent)
        monkeypatch.setattr(pins, "_HOME", "bound")
        with pytest.raises(UnavailableError, match=r"cannot be removed: .*Read-only"):
            pins.remove("one")
        monkeypatch.setattr(pins, "_HOME", "hidden")
        program = pins.open_pinned("one")
        assert program is not None
        program.close()
    finally:
        subprocess.run(["umount", str(pins.BOUND)], check=True)


@pytest.mark.kernel
def test_each_process_has_a_pin_of_its_own(files: Path) -> None:
    pins.prepare("one", 2, "root")
    first = pins.open_pinned("one")
    second = pins.open_pinned("one")
    assert first is not None
    assert second is not None
    first.memory[:4] = b"1st!"
    assert second.memory[:4] != b"1st!"
    assert refusal() == f"all 2 pins in {files}/nfq-guard/one are held by other processes"
    first.close()
    again = pins.open_pinned("one")
    assert again is not None
    assert again.memory[:4] == b"1st!"
    again.close()
    second.close()


@pytest.mark.kernel
def test_a_pin_is_free_again_after_its_process_was_killed(files: Path) -> None:
    pins.prepare("one", 1, "root")
    hold = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from nfq_guard.flows import pins\n"
        f"pins.BPF_FILES = Path({str(files)!r})\n"
        "held = pins.open_pinned('one')\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UnavailableError, match="held by other"):
            pins.open_pinned("one")
        holder.kill()
    program = pins.open_pinned("one")
    assert program is not None
    program.close()


@pytest.mark.kernel
def test_old_pins_are_replaced(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        old.setattr(bpf, "object_hash", lambda: "0" * 16)
        pins.prepare("one", 3, "root")
    assert refusal().endswith(f"{'0' * 16}-0 is of another version of the program")
    pins.prepare("one", 1, "root")
    assert [each.name for each in pin(files).parent.iterdir()] == [pin(files).name]
    program = pins.open_pinned("one")
    assert program is not None
    program.close()


@pytest.mark.kernel
def test_instances_do_not_touch_each_other(files: Path) -> None:
    pins.prepare("one", 1, USER)
    pins.prepare("other", 1, USER)
    pins.remove("other")
    assert pins.open_pinned("other") is None
    assert pin(files).exists()
    pins.remove("other")
    pins.remove("one")
    assert left(files) == []


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("part", "mode", "user", "words"),
    [
        ("program", 0o646, 0, "program is writable by others (mode 0646): the pin is not used"),
        ("program", 0o660, 0, "program is writable by others (mode 0660): the pin is not used"),
        ("memory", 0o662, 0, "memory is writable by others (mode 0662): the pin is not used"),
        ("", 0o770, 0, "-0 is writable by others (mode 0770): the pin is not used"),
        ("..", 0o777, 0, "one is writable by others (mode 0777): the pin is not used"),
        ("program", 0o640, 5, "program belongs to user 5, not to root: the pin is not used"),
        ("memory", 0o660, 5, "memory belongs to user 5, not to root: the pin is not used"),
        ("", 0o700, 5, "-0 belongs to user 5, not to root: the pin is not used"),
    ],
)
def test_a_pin_that_others_could_change_is_refused(
    files: Path, part: str, mode: int, user: int, words: str
) -> None:
    pins.prepare("one", 1, "root")
    changed = (pin(files) / part).resolve()
    os.chown(changed, user, -1)
    changed.chmod(mode)
    assert refusal().endswith(words)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("code", "disabled", "words"),
    [
        (errno.EPERM, "2\n", "unprivileged_bpf_disabled is 2, which before Linux 5.19 forbids it"),
        (errno.EPERM, "0\n", "Operation not permitted"),
        (errno.EPERM, None, "Operation not permitted"),
        (errno.EACCES, "2\n", "Permission denied"),
    ],
)
def test_a_pin_that_the_kernel_keeps_from_us_is_named(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    disabled: str | None,
    words: str,
) -> None:
    def refuse(program: Path, *_: object) -> NoReturn:
        raise OSError(code, os.strerror(code), str(program))

    sysctl = tmp_path / "unprivileged_bpf_disabled"
    if disabled is not None:
        sysctl.write_text(disabled, encoding="ascii")
    monkeypatch.setattr(pins, "_UNPRIVILEGED", sysctl)
    monkeypatch.setattr(capabilities, "has", lambda _: False)
    pins.prepare("one", 1, "root")
    monkeypatch.setattr(Program, "open_pinned", refuse)
    said = refusal()
    assert said.startswith(f"the pin {pin(files)}/program cannot be opened: ")
    assert words in said


@pytest.mark.kernel
@pytest.mark.usefixtures("files")
def test_without_the_library_there_is_no_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> NoReturn:
        raise LoadError(0, "libbpf.so.1: cannot open shared object file", [])

    pins.prepare("one", 1, "root")
    monkeypatch.setattr(Program, "open_pinned", missing)
    flows, note = open_lookup((0,), "one")
    flows.close()
    assert note is not None
    assert "Debian package libbpf1" in note


@pytest.mark.kernel
def test_an_incomplete_pin_is_refused(files: Path) -> None:
    pins.prepare("one", 1, "root")
    (pin(files) / "memory").unlink()
    assert refusal().endswith("memory cannot be examined (No such file or directory): "
                              "the pin is not used")  # fmt: skip


@pytest.mark.kernel
def test_something_else_under_a_pins_name_is_refused(files: Path) -> None:
    """A map where the program should be: a run of it fails."""
    pins.prepare("one", 1, "root")
    (pin(files) / "program").unlink()
    os.link(pin(files) / "memory", pin(files) / "program")
    (pin(files) / "memory").chmod(0o640)
    flows, note = open_lookup((0,), "one")
    flows.close()
    assert flows.evidence is Evidence.BPF
    assert note == "the pinned program cannot be run: BPF_PROG_TEST_RUN: Invalid argument"


@pytest.mark.kernel
def test_a_directory_of_somebody_else_is_not_used(files: Path) -> None:
    (files / "nfq-guard").mkdir()
    os.chown(files / "nfq-guard", 5, 5)
    with pytest.raises(UnavailableError, match=r"nfq-guard is not a directory that only root can"):
        pins.prepare("one", 1, USER)
    os.chown(files / "nfq-guard", 0, 0)
    (files / "nfq-guard").chmod(0o770)
    with pytest.raises(UnavailableError, match=r"nfq-guard is not a directory that only root can"):
        pins.prepare("one", 1, USER)


@pytest.mark.kernel
def test_without_a_bpf_file_system_its_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "BPF_FILES", tmp_path)
    with pytest.raises(UnavailableError) as raised:
        pins.prepare("one", 1, USER)
    assert str(raised.value) == (
        f"no BPF file system is mounted: mount -t bpf -o mode=700 bpf {tmp_path}"
    )
    pins.remove("one")
    assert pins.open_pinned("one") is None


@pytest.mark.kernel
def test_a_program_that_cannot_be_loaded_leaves_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise LoadError(errno.ESRCH, "", ["'bpf_skb_ct_lookup': not found"])

    monkeypatch.setattr(bpf, "load", refuse)
    with pytest.raises(UnavailableError, match=r"cannot be loaded: the kernel has no bpf_skb_ct"):
        pins.prepare("one", 1, USER)
    assert list((files / "nfq-guard").iterdir()) == []


@pytest.mark.kernel
def test_a_name_that_the_file_system_refuses_is_named(files: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot be pinned: .*a\.b"):
        pins.prepare("a.b", 1, USER)
    assert list((files / "nfq-guard").iterdir()) == []


@pytest.fixture
def elsewhere(namespace: Callable[[str], Namespace]) -> Iterator[None]:
    """This thread in a network namespace of the test's own."""
    with namespace("pins").entered():
        yield


@pytest.mark.kernel
@pytest.mark.usefixtures("elsewhere")
def test_the_command(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "one.toml"
    config.write_text('[daemon]\nqueues = "0-2"\n', encoding="utf-8")
    words = ["prepare", "--config", str(config)]
    assert cli.main([*words, "--user", USER]) == 0
    assert capsys.readouterr().out == (
        f"pinned in {files}/nfq-guard/one: 3 of the BPF program, one a queue\n"
    )
    assert len(list(pin(files).parent.iterdir())) == 3
    assert cli.main([*words, "--user", USER, "--quiet"]) == 0
    assert cli.main([*words, "--remove"]) == 0
    # There are no rules.
    assert cli.main([*words, "--user", USER, "--keep-rules"]) == 1
    assert left(files) == []
    assert cli.main([*words, "--keep-rules", "--rules"]) == 2
    assert capsys.readouterr().err == "nfq-guard: --keep-rules: not with --rules or --remove\n"
    done = tmp_path / "done"
    for _ in range(2):
        assert cli.main([*words, "--user", USER, "--quiet", "--done", str(done)]) == 0
        assert done.is_dir()
    assert cli.main([*words, "--remove", "--done", str(done)]) == 2
    (done / "file").touch()
    assert cli.main([*words, "--user", USER, "--quiet", "--done", str(done)]) == 1
    assert capsys.readouterr().err == (
        f"nfq-guard: --done: not with --remove\nnfq-guard: {done}: Directory not empty\n"
    )
    assert cli.main([*words, "--remove"]) == 0
    assert cli.main([*words, "--user", "nowhere-user"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "nfq-guard: user 'nowhere-user' does not exist\n"
    assert left(files) == []


def test_the_instance_is_the_configurations_name() -> None:
    assert pins.instance_of(None) == pins.instance_of(DEFAULT_PATH) == "nfq-guard"
    assert pins.instance_of(Path("/etc/nfq-guard/a.b.toml")) == "a_b"


def test_pinning_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PrivilegeError, match="takes root"):
        pins.prepare("one", 1, USER)


def test_removing_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lack of privilege has its own exit status."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PrivilegeError, match="takes root"):
        pins.remove("one")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UnavailableError, match="Permission denied"):
        pins.remove("one")


def test_an_unknown_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UsageError, match="'nowhere-user' does not exist"):
        pins.prepare("one", 1, "nowhere-user")


@pytest.mark.kernel
@pytest.mark.parametrize("pinned", [False, True])
def test_without_pin_and_program_the_next_evidence_is_used(
    files: Path, monkeypatch: pytest.MonkeyPatch, *, pinned: bool
) -> None:
    def refuse() -> NoReturn:
        raise LoadError(errno.ESRCH, "", ["'bpf_skb_ct_lookup': not found"])

    if pinned:
        pins.prepare("one", 1, "root")
        (pin(files) / "program").chmod(0o666)
    monkeypatch.setattr(bpf, "load", refuse)
    flows, note = open_lookup((0,), "one")
    flows.close()
    assert flows.evidence is Evidence.CTNETLINK
    assert note is not None
    assert "\n" not in note
    assert "the kernel has no bpf_skb_ct_lookup" in note
    assert ("writable by others (mode 0666)" in note) is pinned
    assert ("no pinned program is found" in note) is not pinned
