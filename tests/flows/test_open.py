# SPDX-License-Identifier: MIT
"""The choice of the lookup, and the line on why there is no better one."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import nfq_guard
from nfq_guard.flow import Evidence, FlowTuple
from nfq_guard.flows import bpf
from nfq_guard.flows import open as opening
from nfq_guard.flows.libbpf import LoadError, last_complaint
from nfq_guard.flows.unavailable import Host, unavailable_reason

_ASK = (
    "import os\n"
    "from nfq_guard.flows.open import open_lookup\n"
    "flows, line = open_lookup((0,), os.environ.get('INSTANCE'))\n"
    "print(flows.evidence, '|', line)\n"
)
_ALL = ("net_admin", "bpf", "perfmon")


@pytest.fixture(scope="module")
def readable() -> Iterator[Path]:
    """The package in a directory that any user can read."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        shutil.copytree(Path(nfq_guard.__file__).parent, root / "nfq_guard")
        yield root


def _ask(root: Path, *prefix: str, **environment: str) -> tuple[str, str]:
    """Evidence and line of a process started by `prefix`, which must print nothing else."""
    done = subprocess.run(
        [*prefix, str(Path(sys.executable).resolve()), "-B", "-c", _ASK],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
        env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"], **environment},
        timeout=60,
    )
    assert done.stderr == ""
    evidence, _, line = done.stdout.strip().partition(" | ")
    return evidence, line


def _nobody_with(*capabilities: str) -> list[str]:
    """The prefix that runs a command as nobody with these capabilities and no other."""
    wanted = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
        f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={wanted}",
    ]  # fmt: skip


@pytest.mark.kernel
def test_three_capabilities_are_enough(readable: Path) -> None:
    assert _ask(readable, *_nobody_with(*_ALL)) == ("bpf", "None")


def _printed(readable: Path, program: str) -> str:
    """What a program prints that another user can import the package in."""
    done = subprocess.run(
        [str(Path(sys.executable).resolve()), "-B", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(readable)},
        timeout=60,
    )
    return done.stdout


@pytest.mark.kernel
def test_capabilities_can_be_dropped_once_it_is_open(readable: Path) -> None:
    program = (
        "import os\n"
        "from nfq_guard.flow import FlowTuple\n"
        "from nfq_guard.flows.open import open_lookup\n"
        "flows, _ = open_lookup()\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "print(flows.evidence, flows.lookup([FlowTuple(6, bytes(4), bytes(4), 1, 2)]))\n"
    )
    assert _printed(readable, program) == "bpf [None]\n"


@pytest.mark.kernel
def test_ctnetlink_without_its_capability_fails_each_lookup(readable: Path) -> None:
    """The kernel asks for CAP_NET_ADMIN at each lookup, also on a socket that root opened."""
    program = (
        "import os\n"
        "from nfq_guard.flow import FlowTuple\n"
        "from nfq_guard.flows.ctnetlink import CtnetlinkFlows\n"
        "flows = CtnetlinkFlows((0, 7))\n"
        "wanted = FlowTuple(6, bytes(4), bytes(4), 1, 2)\n"
        "print(flows.lookup([wanted]))\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "print(flows.lookup([wanted, wanted]))\n"
    )
    failed = f"LookupFailed(code={errno.EPERM})"
    assert _printed(readable, program) == f"[None]\n[{failed}, {failed}]\n"


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("held", "evidence", "missing"),
    [
        (("net_admin", "bpf"), "ctnetlink", "CAP_PERFMON is missing"),
        (("net_admin", "perfmon"), "ctnetlink", "CAP_BPF is missing"),
        (("net_admin",), "ctnetlink", "CAP_PERFMON and CAP_BPF are missing"),
        (("bpf", "perfmon"), "none", "CAP_NET_ADMIN is missing"),
        ((), "none", "CAP_NET_ADMIN and CAP_PERFMON and CAP_BPF are missing"),
    ],
)
def test_missing_capability_is_named(
    readable: Path, held: tuple[str, ...], evidence: str, missing: str
) -> None:
    found, line = _ask(readable, *_nobody_with(*held))
    assert found == evidence
    assert line.removeprefix("no flow can be looked up: ") == missing


def _with_pins(preparing: str, mode: int) -> list[str]:
    """The prefix that runs a command with a BPF file system of its own, after some Python."""
    mount = f"mount -t bpf -o mode={mode} bpf /sys/fs/bpf"
    python = Path(sys.executable).resolve()
    program = f"from nfq_guard.flows import pins; {preparing}"
    return [
        "unshare", "--mount", "sh", "-ec", f'{mount}; {python} -B -c "{program}"; exec "$@"', "sh",
    ]  # fmt: skip


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("preparing", "mode", "expected"),
    [
        ("pins.prepare('one', 1, 'nobody')", 755, ("bpf", "None")),
        ("pins.prepare('one', 1, 'nobody')", 700, ("ctnetlink", "missing, and no pinned program")),
        (
            "pins.prepare('other', 1, 'nobody')",
            755,
            ("ctnetlink", "missing, and no pinned program"),
        ),
        ("pins.prepare('one', 1, 'root')", 755, ("ctnetlink", "missing, and no pinned program")),
    ],
)
def test_one_capability_is_enough_for_a_pin(
    readable: Path, preparing: str, mode: int, expected: tuple[str, str]
) -> None:
    prefix = (*_with_pins(preparing, mode), *_nobody_with("net_admin"))
    found, line = _ask(readable, *prefix, INSTANCE="one")
    assert found == expected[0]
    assert re.search(expected[1], line)


@pytest.mark.kernel
def test_user_namespace_is_named(readable: Path) -> None:
    """Root of a container's user namespace has every capability there, but no BPF."""
    found, line = _ask(readable, "unshare", "--user", "--map-root-user", "--net")
    assert found == "ctnetlink"
    assert line.endswith("BPF needs the host's user namespace, and this process is in another")


@pytest.mark.kernel
def test_missing_type_information_is_named(readable: Path) -> None:
    """A kernel without BTF, as seen by a process for which it is hidden."""
    hide = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    found, line = _ask(readable, "unshare", "--mount", "sh", "-c", hide, "sh")
    assert found == "ctnetlink"
    assert "CONFIG_DEBUG_INFO_BTF" in line


@pytest.mark.kernel
def test_missing_library_is_named(readable: Path) -> None:
    """As seen by a process for which an empty file hides it."""
    known = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    (library,) = re.findall(r"libbpf\.so\.1 .*=> (\S+)", known)
    hide = f'mount --bind /dev/null {library} && exec "$@"'
    found, line = _ask(readable, "unshare", "--mount", "sh", "-c", hide, "sh")
    assert found == "ctnetlink"
    assert "Debian package libbpf1" in line


@pytest.mark.kernel
def test_rejected_program_shows_the_verifiers_line(capfd: pytest.CaptureFixture[str]) -> None:
    """With another licence the kernel refuses its lookup function, and says so."""
    committed = Path(bpf.__file__).with_name("ct_lookup.bpf.o").read_bytes()
    with pytest.raises(LoadError) as raised:
        bpf.load(committed.replace(b"Dual MIT/GPL", b"Proprietary."))
    line = unavailable_reason(raised.value, Host.here())
    assert line.startswith("the kernel refused the program (EINVAL): ")
    assert "GPL" in line
    assert "\n" not in line
    assert capfd.readouterr().err == ""


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("field", "words"),
    [
        (b"td_maxack", "the kernel's struct ip_ct_tcp has no field seen[0].td_maxzzz: "),
        (b"last_wscale", "the kernel's struct ip_ct_tcp has no field last_wsczzz: "),
        (b"status", "the kernel's struct nf_conn has no field stazzz: "),
    ],
)
def test_a_field_that_the_kernel_lacks_is_named(
    field: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program refers to a field of another name; the next evidence is used."""
    committed = Path(bpf.__file__).with_name("ct_lookup.bpf.o").read_bytes()
    changed = committed.replace(field + b"\0", field[:-3] + b"zzz\0")
    assert changed != committed
    load = bpf.load
    monkeypatch.setattr(bpf, "load", lambda: load(changed))
    flows, line = opening.open_lookup()
    flows.close()
    assert flows.evidence is Evidence.CTNETLINK
    assert line is not None
    assert words in line
    assert "\n" not in line
    assert opening.load_ahead(2) == line


@pytest.mark.kernel
def test_programs_loaded_ahead_are_used_or_named() -> None:
    """By a process that cannot load one any more, so a refused program is not loaded again."""
    loaded = opening.load_ahead(2)
    assert not isinstance(loaded, str)
    first, second = loaded
    flows, line = opening.open_lookup((0, 7), "no-such-instance", first)
    assert (flows.evidence, line) == (Evidence.BPF, None)
    assert flows.lookup([FlowTuple(6, bytes(4), bytes(4), 1, 2)]) == [None]
    flows.close()
    second.close()
    flows, line = opening.open_lookup(ahead="the reason of before")
    flows.close()
    assert flows.evidence is Evidence.CTNETLINK
    assert line == "the reason of before"


@pytest.mark.kernel
def test_a_program_loaded_ahead_that_cannot_run_is_named() -> None:
    """Its descriptor does not refer to a program any more."""
    loaded = opening.load_ahead(1)
    assert not isinstance(loaded, str)
    (program,) = loaded
    with Path("/dev/null").open("rb") as other:
        os.dup2(other.fileno(), program.descriptors[0])
        flows, line = opening.open_lookup(ahead=program)
    flows.close()
    assert flows.evidence is Evidence.CTNETLINK
    assert line is not None
    assert "BPF_PROG_TEST_RUN" in line


@pytest.mark.kernel
def test_garbage_is_no_program() -> None:
    with pytest.raises(LoadError) as raised:
        bpf.load(b"\x7fELF" + bytes(60))
    assert "\n" not in unavailable_reason(raised.value, Host.here())


@pytest.mark.kernel
def test_root_gets_the_window(capfd: pytest.CaptureFixture[str]) -> None:
    flows, line = opening.open_lookup((0, 7))
    assert (flows.evidence, line) == (Evidence.BPF, None)
    assert flows.lookup([]) == []
    flows.close()
    assert capfd.readouterr().err == ""


FULL = Host(
    capabilities=2**41 - 1,
    is_init_user_namespace=True,
    has_btf=True,
    is_conntrack_module=False,
    has_module_btf=False,
    is_jit_on=True,
    is_locked_down=False,
    release="5.10.0",
)
THREE = 1 << 12 | 1 << 38 | 1 << 39
NOT_FOUND = "extern (func ksym) 'bpf_skb_ct_lookup': not found in kernel or module BTFs"


@pytest.mark.parametrize(
    ("host", "code", "warnings", "words"),
    [
        (FULL, errno.ESRCH, [NOT_FOUND], "5.18 or later .*required, this is 5.10.0$"),
        (replace(FULL, has_btf=False), errno.ESRCH, ["x"], "CONFIG_DEBUG_INFO_BTF is missing"),
        (
            replace(FULL, is_conntrack_module=True),
            errno.ESRCH,
            [NOT_FOUND],
            "CONFIG_DEBUG_INFO_BTF_MODULES is missing",
        ),
        (
            replace(FULL, is_conntrack_module=True, has_module_btf=True, capabilities=THREE),
            errno.EPERM,
            ["failed to iterate BTF objects: -1"],
            "^CAP_SYS_ADMIN is missing: nf_conntrack is a module",
        ),
        (replace(FULL, is_locked_down=True), errno.EINVAL, ["x"], "lockdown .*confidentiality"),
        (replace(FULL, is_jit_on=False), errno.ENOTSUP, ["x"], "net.core.bpf_jit_enable=1$"),
        (replace(FULL, is_init_user_namespace=False), errno.EPERM, ["x"], "user namespace"),
        (
            # A rootless container with one capability more: further ones would not help.
            replace(FULL, is_init_user_namespace=False, capabilities=1 << 12),
            errno.EPERM,
            ["x"],
            "user namespace",
        ),
        (replace(FULL, capabilities=1 << 12), errno.EPERM, ["x"], "^CAP_PERFMON and CAP_BPF are"),
        (replace(FULL, capabilities=THREE), errno.EPERM, ["said last"], "(EPERM): said last$"),
        (FULL, 0, [], "Debian package libbpf1"),
        (FULL, 4095, [], "(4095)"),
    ],
)
def test_each_cause_has_its_line(host: Host, code: int, warnings: list[str], words: str) -> None:
    line = unavailable_reason(LoadError(code, "", warnings), host)
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), line)
    assert "\n" not in line


def test_last_line_of_the_verifier() -> None:
    log = b"0: R1=ctx\ncannot call GPL-restricted function\nprocessed 3 insns (limit 1000000)\n\n"
    assert last_complaint(log) == "cannot call GPL-restricted function"
    assert last_complaint(b"") == ""


def test_without_anything_nothing_is_found() -> None:
    flows = opening.NoFlows()
    assert flows.evidence is Evidence.NONE
    assert flows.lookup([FlowTuple(6, bytes(4), bytes(4), 1, 2)] * 3) == [None] * 3
    flows.close()
