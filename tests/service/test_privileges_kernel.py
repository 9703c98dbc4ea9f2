# SPDX-License-Identifier: MIT
"""A daemon started by root drops its privileges, and works with the remaining ones."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from tests.service.write_elsewhere import OF_ROOT
from tests.support.queue import QUEUE, GuardProcess, import_path, wait_for

pytestmark = pytest.mark.kernel

DAC_OVERRIDE, NET_BIND_SERVICE, NET_ADMIN, NET_RAW = (1 << number for number in (1, 10, 12, 13))
NOBODY = 65534
Make = Callable[[str], Namespace]


def privileges(pid: int) -> tuple[int, ...]:
    """CapEff, CapPrm, CapBnd and NoNewPrivs of a process; inheritable and ambient must be empty."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    sets = tuple(int(found[name], 16) for name in ("CapEff", "CapPrm", "CapBnd"))
    return *sets, int(found["NoNewPrivs"])


def only(kept: int) -> tuple[int, ...]:
    return kept, kept, kept, 1


def configured(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["[daemon]", f"queue = {QUEUE}", *lines, ""]), encoding="utf-8")
    return str(path)


def guard_in(namespace: Namespace, tmp_path: Path, *lines: str) -> GuardProcess:
    config = configured(tmp_path / "config.toml", *lines)
    return GuardProcess(namespace, tmp_path / "log", "--config", config).ready()


@pytest.fixture
def inside(namespace: Make) -> Namespace:
    return namespace("caps")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_it_keeps_is_enough(inside: Namespace, tmp_path: Path, backend: str) -> None:
    """It is enough for the window, the rules, their repair and removal, metrics file and reload."""
    metrics = tmp_path / "metrics.prom"
    with guard_in(
        inside, tmp_path, f'backend = "{backend}"', f'metrics_file = "{metrics}"',
        "verify_rules_s = 0.2", 'control_socket = ""',
    ) as guard:  # fmt: skip
        assert privileges(guard.process.pid) == only(NET_ADMIN | NET_RAW)
        (started,) = guard.events("started")
        assert started["evidence"] == "bpf"
        assert (started["uid"], started["capabilities"]) == (0, ["CAP_NET_ADMIN", "CAP_NET_RAW"])
        assert guard.events("note") == []
        save = f"iptables-{backend}-save"
        assert "NFQ_GUARD" in inside.run(save).stdout
        inside.run(f"iptables-{backend}", "-t", "mangle", "-F")
        wait_for(lambda: "NFQUEUE" in inside.run(save).stdout)
        assert metrics.exists()
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(guard.events("reloaded")))
        assert guard.stop() == 0
    assert "NFQ_GUARD" not in inside.run(save).stdout
    assert not metrics.exists()


def test_without_rules_it_keeps_one_capability(inside: Namespace, tmp_path: Path) -> None:
    with guard_in(inside, tmp_path, 'rules = "none"', 'control_socket = ""') as guard:
        assert privileges(guard.process.pid) == only(NET_ADMIN)
        assert guard.events("started")[0]["evidence"] == "bpf"
        assert guard.stop() == 0


def test_workers_keep_no_more_also_after_a_restart(inside: Namespace, tmp_path: Path) -> None:
    """A restarted worker reads the window, although no process could load a program by then."""
    config = tmp_path / "config.toml"
    config.write_text('[daemon]\nqueues = "7-8"\ncontrol_socket = ""\n', encoding="ascii")

    def workers(guard: GuardProcess) -> set[int]:
        pid = guard.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return {int(word) for word in children.split()}

    with GuardProcess(inside, tmp_path / "log", "--config", str(config)).ready() as guard:
        before = workers(guard)
        assert len(before) == 2
        for pid in (guard.process.pid, *before):
            assert privileges(pid) == only(NET_ADMIN | NET_RAW)
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: len(workers(guard)) == 2 and workers(guard) != before)
        wait_for(lambda: bool(guard.events("worker_restarted")))
        (new,) = workers(guard) - before
        assert privileges(new) == only(NET_ADMIN | NET_RAW)
        assert guard.events("note") == []
        assert guard.stop() == 0


def test_a_privileged_port_keeps_its_capability(inside: Namespace, tmp_path: Path) -> None:
    with guard_in(
        inside, tmp_path, 'metrics_listen = "127.0.0.1:947"', 'control_socket = ""'
    ) as guard:
        kept = NET_ADMIN | NET_RAW | NET_BIND_SERVICE
        assert privileges(guard.process.pid) == only(kept)
        assert guard.stop() == 0


def test_a_directory_of_another_user_keeps_the_right_to_it(
    inside: Namespace, tmp_path: Path
) -> None:
    """Such as that of node_exporter; the log says so."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, NOBODY, NOBODY)
    with guard_in(
        inside, tmp_path, f'metrics_file = "{theirs}/guard.prom"', 'control_socket = ""'
    ) as guard:
        assert privileges(guard.process.pid) == only(NET_ADMIN | NET_RAW | DAC_OVERRIDE)
        assert [
            f"CAP_DAC_OVERRIDE, because {theirs}" in one["text"] for one in guard.events("note")
        ]
        assert (theirs / "guard.prom").exists()
        assert guard.stop() == 0
    assert not (theirs / "guard.prom").exists()


@pytest.mark.parametrize("key", ["shadow", "include"])
def test_a_policy_of_another_user_keeps_the_right_to_it(
    inside: Namespace, tmp_path: Path, key: str
) -> None:
    """Its path is relative to the configuration. A reload reads it, long after the start."""
    theirs = tmp_path / "theirs.toml"
    theirs.write_text('[policy]\ndefault = "log"\n')
    theirs.chmod(0o600)
    os.chown(theirs, NOBODY, NOBODY)
    line = (
        f'[policy]\ninclude = ["{theirs.name}"]'
        if key == "include"
        else f'shadow = "{theirs.name}"'
    )
    with guard_in(inside, tmp_path, 'control_socket = ""', line) as guard:
        assert privileges(guard.process.pid) == only(NET_ADMIN | NET_RAW | DAC_OVERRIDE)
        (note,) = guard.events("note")
        assert f"CAP_DAC_OVERRIDE, because {theirs} is not open" in note["text"]
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(guard.events("reloaded")))
        assert guard.stop() == 0


# A host on which any user may run this interpreter and read this tree: a machine for tests may have
# them in the home of root. Its /run is its own.
SCRIPT = (
    "set -e; mount -t tmpfs run /run\n"
    'for path in "$1" "$2"; do until [ $path = / ]; do\n'
    "  path=$(dirname $path)\n"
    "  [ $(($(stat -c 0%a $path) & 1)) = 0 ] || continue\n"
    "  mkdir -p /run/over$path/upper /run/over$path/work\n"
    "  over=lowerdir=$path,upperdir=/run/over$path/upper,workdir=/run/over$path/work\n"
    "  mount -t overlay -o $over overlay $path\n"
    "  chmod o+x $path\n"
    "done; done; shift 2\n"
    "install -d -o nobody /run/theirs\n"
    'exec "$@"'
)
OPEN_HOST = ("unshare", "--mount", "sh", "-c", SCRIPT, "sh", os.__file__, __file__)


def guard_of(user: str, namespace: Namespace, tmp_path: Path, *lines: str) -> GuardProcess:
    """A daemon of root that becomes this user, who can read its configuration."""
    config = configured(
        tmp_path / "config.toml",
        f'user = "{user}"',
        'metrics_file = "/run/theirs/guard.prom"',
        *lines,
    )
    script = 'cp "$0" /run/config.toml; exec "$@"'
    return GuardProcess(
        namespace, tmp_path / "log", "--config", "/run/config.toml",
        prefix=(*OPEN_HOST, "sh", "-c", script, config),
    ).ready()  # fmt: skip


def test_it_becomes_the_user_that_is_set(inside: Namespace, tmp_path: Path) -> None:
    """Evidence, rules, their repair and removal, files and a reload work."""
    with guard_of("nobody", inside, tmp_path, 'backend = "nft"', "verify_rules_s = 0.2") as guard:
        pid = guard.process.pid
        kept = NET_ADMIN | NET_RAW
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert found["Uid"].split() == [str(NOBODY)] * 4
        assert set(found["Gid"].split() + found["Groups"].split()) == {str(NOBODY)}
        # Programs that it runs inherit them.
        names = ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")
        assert {int(found[name], 16) for name in names} == {kept}
        assert found["NoNewPrivs"] == "1"
        (started,) = guard.events("started")
        assert (started["uid"], started["evidence"]) == (NOBODY, "bpf")
        assert guard.events("note") == []
        run = Path("/proc", str(pid), "root", "run")
        assert (run / "nfq-guard/control.sock").stat().st_uid == NOBODY
        assert (run / "theirs/guard.prom").exists()
        inside.run("iptables-nft", "-t", "mangle", "-F")
        wait_for(lambda: "NFQUEUE" in inside.run("iptables-nft-save").stdout)
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(guard.events("reloaded")))
        assert guard.stop() == 0
    assert "NFQ_GUARD" not in inside.run("iptables-nft-save").stdout


def test_what_the_user_may_not_access_is_named(inside: Namespace, tmp_path: Path) -> None:
    """The lock of iptables-legacy is root's."""
    with guard_of("nobody", inside, tmp_path, 'backend = "legacy"') as guard:
        (note,) = guard.events("note")
        assert "CAP_DAC_OVERRIDE, because /run/xtables.lock is not open" in note["text"]
        assert "NFQ_GUARD" in inside.run("iptables-legacy-save").stdout
        assert guard.stop() == 0
    assert "NFQ_GUARD" not in inside.run("iptables-legacy-save").stdout


def test_the_user_reads_the_pods_of_root(inside: Namespace, tmp_path: Path) -> None:
    """By CAP_DAC_READ_SEARCH alone; the mistake in a file shows that it was read."""
    results = tmp_path / "results"
    results.mkdir(mode=0o700)
    (results / "net-bad-eth0").touch(mode=0o600)
    lines = ('backend = "nft"', f'pods_dir = "{results}"')
    with guard_of("nobody", inside, tmp_path, *lines) as guard:
        (started,) = guard.events("started")
        assert started["capabilities"] == ["CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN", "CAP_NET_RAW"]
        wait_for(lambda: bool(guard.events("pods_unread")))
        (unread,) = guard.events("pods_unread")
        assert unread["problem"] == "'net-bad-eth0': not JSON of the kind cniCacheV1"
        assert unread["files"] == 1
        assert guard.stop() == 0


def test_the_user_restores_the_sysctls_of_the_log(inside: Namespace, tmp_path: Path) -> None:
    words = ("sysctl", "-n", "net.netfilter.nf_conntrack_log_invalid")
    lines = ('backend = "nft"', 'evidence = "kernel-log"')
    with guard_of("nobody", inside, tmp_path, *lines) as guard:
        assert guard.events("started")[0]["evidence"] == "kernel-log"
        notes = [note["text"] for note in guard.events("note")]
        assert any("because /run/nfq-guard-kernel-log is not open" in note for note in notes), notes
        assert inside.run(*words).stdout == "255\n"
        assert guard.stop() == 0
    assert inside.run(*words).stdout == "0\n"


@pytest.mark.parametrize(
    ("user", "prefix", "status", "complaint"),
    [
        ("nosuch", (), 2, "daemon.user: expected a user of this host, found 'nosuch'"),
        ("root", ("setpriv", "--reuid=65534"), 77, "daemon.user: only root may become root"),
    ],
)
def test_a_user_that_it_cannot_become(
    inside: Namespace, tmp_path: Path, user: str, prefix: Sequence[str], status: int, complaint: str
) -> None:
    """Nothing is installed."""
    config = configured(tmp_path / "config.toml", f'user = "{user}"', 'control_socket = ""')
    words = (*OPEN_HOST, "sh", "-c")
    script = 'cp "$0" /run/config.toml; exec "$@"'
    environment = ("env", f"PYTHONPATH={import_path()}")
    daemon = (sys.executable, "-m", "nfq_guard", "run", "--config", "/run/config.toml")
    done = inside.run(*words, script, config, *prefix, *environment, *daemon, check=False)
    assert (done.returncode, done.stderr) == (status, f"nfq-guard: {complaint}\n")
    assert "NFQ_GUARD" not in inside.run("iptables-nft-save").stdout


def test_no_program_gains_what_was_given_up(inside: Namespace) -> None:
    """Neither a program run as root nor one with the set-user-id bit."""
    code = (
        "import os, subprocess\n"
        "from nfq_guard import capabilities\n"
        "capabilities.keep_only(1 << capabilities.NET_ADMIN)\n"
        "assert capabilities.effective() == 1 << capabilities.NET_ADMIN\n"
        "subprocess.run(['grep', '-E', 'CapEff|CapBnd|NoNewPrivs', '/proc/self/status'])\n"
    )
    environment = ("env", f"PYTHONPATH={import_path()}")
    told = inside.run(*environment, sys.executable, "-c", code).stdout.split()
    assert told == [
        "CapEff:",
        f"{NET_ADMIN:016x}",
        "CapBnd:",
        f"{NET_ADMIN:016x}",
        "NoNewPrivs:",
        "1",
    ]


def test_a_process_that_may_not_change_its_bounding_set(inside: Namespace) -> None:
    """It still gives up the capabilities that it holds."""
    code = (
        "from nfq_guard import capabilities\n"
        "capabilities.keep_only(1 << capabilities.NET_ADMIN | 1 << capabilities.BPF)\n"
        "print(f'{capabilities.effective():x}')\n"
    )
    done = inside.run(
        "setpriv", "--bounding-set=-setpcap,-bpf", "--inh-caps=-all", "--",
        "env", f"PYTHONPATH={import_path()}", sys.executable, "-c", code,
    )  # fmt: skip
    assert done.stdout.strip() == f"{NET_ADMIN:x}"


def forbidden(own: Path, other: Path, *options: str) -> dict[str, list[str]]:
    """What a process could do after it gave up its privileges, and its notes for the operator."""
    for folder in (own, other):
        folder.mkdir()
    (own / "kept").touch()
    (other / "there").touch()
    module = "tests.service.write_elsewhere"
    words = [sys.executable, "-m", module, str(own), str(other), *options]
    environment = {name: value for name, value in os.environ.items() if name != "INVOCATION_ID"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


ALLOWED = ["its log", "a file beside its log", "a program's write there", "reading"]


def test_without_systemd_it_writes_to_its_own_directories_alone(tmp_path: Path) -> None:
    found = forbidden(tmp_path / "own", tmp_path / "other")
    # The rest requires a capability that was given up; the user id is still root's.
    assert found == {"worked": [*ALLOWED, *OF_ROOT], "notes": []}


def test_another_user_reads_nothing_of_root_either() -> None:
    script = (
        "cd /run/theirs; mkdir own other; touch own/kept other/there; chown -R nobody own; cd /; "
        f'exec env -u INVOCATION_ID PYTHONPATH={import_path()} "$0" -m '
        "tests.service.write_elsewhere /run/theirs/own /run/theirs/other --user"
    )
    words = (*OPEN_HOST, "sh", "-ec", script, sys.executable)
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    assert found == {"worked": ALLOWED, "notes": []}


def test_a_kernel_without_landlock(tmp_path: Path) -> None:
    """The daemon says so once, and nothing else changes."""
    found = forbidden(tmp_path / "own", tmp_path / "other", "--without-landlock")
    assert [note.partition(":")[0] for note in found["notes"]] == ["the kernel has no Landlock"]
    assert {"writing elsewhere", "a TCP connection"} <= set(found["worked"])
