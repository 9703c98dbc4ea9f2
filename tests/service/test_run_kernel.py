# SPDX-License-Identifier: MIT
"""`nfq-guard run` as an operator runs it, on real queues in separate namespaces."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.service import passed_sockets
from tests.support.missing import cannot_run
from tests.support.queue import (
    QUEUE,
    THAT_PORT_POLICY,
    Datagrams,
    GuardProcess,
    configured,
    import_path,
    kernel_line,
    queue_udp,
    wait_for,
)

# Some daemons listen at the default path, and so run one after the other.
pytestmark = pytest.mark.kernel
Make = Callable[[str], Namespace]


@pytest.fixture
def inside(namespace: Make) -> Namespace:
    """A namespace that queues all UDP it sends."""
    made = namespace("run")
    queue_udp(made)
    return made


def idle(namespace: Namespace) -> bool:
    return kernel_line(namespace).waiting == 0


def test_dry_run_accepts_and_logs(inside: Namespace, tmp_path: Path) -> None:
    config = configured(tmp_path / "c", "log_interval_s = 0")
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        udp.send(150)
        wait_for(lambda: len(guard.events("packet_judged")) == 150)
        assert udp.received() == list(range(150))
        assert idle(inside)
        assert guard.stop() == 0
        judged = guard.events("packet_judged")
        assert {(one["action"], one["verdict"], one["would"]) for one in judged} == {
            ("drop", "accept", "drop")
        }
        (stopped,) = guard.events("stopped")
        assert (stopped["packets"], stopped["actions"]) == (150, {"drop": 150})


def test_enforce_drops(inside: Namespace, tmp_path: Path) -> None:
    config = configured(tmp_path / "c", 'mode = "enforce"')
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        udp.send(150)
        wait_for(lambda: idle(inside) and bool(guard.events("packet_judged")))
        assert guard.stop(signal.SIGINT) == 130
        assert udp.received() == []
        judged = guard.events("packet_judged")
        assert sum(one.get("count", 1) for one in judged) == 150
        assert judged[0]["verdict"] == "drop"


def test_stop_on_a_quiet_queue(inside: Namespace, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        log = tmp_path / f"log{number}"
        words = ("--queue", str(QUEUE), "--no-rules")
        with GuardProcess(inside, log, *words).ready() as guard:
            assert guard.stop(number) == (130 if number == signal.SIGINT else 0)
            assert guard.events("stopped")


def test_stop_answers_the_packets_that_wait(inside: Namespace, tmp_path: Path) -> None:
    """Packets are queued while the daemon is stopped; SIGTERM is pending when it continues."""
    words = ("--queue", str(QUEUE), "--no-rules")
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", *words).ready() as guard,
    ):
        guard.process.send_signal(signal.SIGSTOP)
        udp.send(900)
        assert kernel_line(inside).waiting == 900
        guard.process.send_signal(signal.SIGTERM)
        guard.process.send_signal(signal.SIGCONT)
        assert guard.process.wait(timeout=limit(10)) == 0
        assert udp.received() == list(range(900))


def test_second_daemon_names_the_first(inside: Namespace, tmp_path: Path) -> None:
    words = ("--queue", str(QUEUE), "--no-rules")
    with GuardProcess(inside, tmp_path / "log", *words).ready() as first:
        with GuardProcess(inside, tmp_path / "second", *words) as second:
            assert second.process.wait(timeout=limit(10)) == 75
            (line,) = second.stderr().splitlines()
        port = kernel_line(inside).port_id
        assert line.startswith(f"nfq-guard: queue {QUEUE} is owned by netlink port {port}, python")
        assert line.endswith(f"(pid {first.process.pid})")
        assert first.stop() == 0


def test_flood_beyond_queue_and_buffer(inside: Namespace, tmp_path: Path) -> None:
    """Fail mode closed, tiny limits: the kernel drops and counts, and the daemon continues."""
    config = configured(
        tmp_path / "c",
        "queue_length = 500",
        "socket_buffer_bytes = 8192",
        'mode = "enforce"',
        'fail_mode = "closed"',
        policy=THAT_PORT_POLICY.replace('"drop"', '"log"'),
    )
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        guard.process.send_signal(signal.SIGSTOP)
        udp.send(1000)
        guard.process.send_signal(signal.SIGCONT)
        wait_for(lambda: idle(inside) and bool(guard.events("kernel_dropped_packets")))
        lost = kernel_line(inside)
        udp.send(5)
        wait_for(lambda: idle(inside))
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
        drops = stopped["queue_full_drops"] + stopped["buffer_full_drops"]
        assert drops == lost.queue_dropped + lost.user_dropped > 0
        assert stopped["packets"] + drops == 1005
        assert len(udp.received()) == stopped["packets"]
        assert stopped["buffer_overruns"] >= 1


def test_dry_run_drops_nothing_whatever_the_fail_mode(inside: Namespace, tmp_path: Path) -> None:
    config = configured(tmp_path / "c", "queue_length = 10", 'fail_mode = "closed"')
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        guard.process.send_signal(signal.SIGSTOP)
        udp.send(500)
        guard.process.send_signal(signal.SIGCONT)
        wait_for(lambda: idle(inside))
        assert sorted(udp.received()) == list(range(500))
        assert guard.stop() == 0


def test_full_disk(inside: Namespace, tmp_path: Path) -> None:
    """Every packet gets its verdict, and the daemon still stops cleanly."""
    config = configured(tmp_path / "c", 'log = "/dev/full"', "log_interval_s = 0")
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config) as guard,
    ):
        wait_for(lambda: "7" in inside.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout)
        udp.send(300)
        wait_for(lambda: idle(inside))
        assert udp.received() == list(range(300))
        assert guard.stop() == 0


@contextlib.contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own, thawed at the end."""
    image, mounted = place / "image", place / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", image], check=False, capture_output=True)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", "loop", image, mounted], check=False).returncode
    ):
        cannot_run("no loop device, or no ext4")
    try:
        yield mounted
    finally:
        subprocess.run(["fsfreeze", "-u", mounted], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "--lazy", mounted], check=True)


@pytest.mark.parametrize("setting", ["log", "events_file"])
@pytest.mark.parametrize("queues", ["", f"queues = '{QUEUE}-{QUEUE + 1}'"], ids=["one", "two"])
def test_a_frozen_disk_delays_no_packet(
    inside: Namespace, tmp_path: Path, setting: str, queues: str
) -> None:
    """Backups freeze file systems for seconds; no signal ends a process that writes then."""
    with disk(tmp_path) as frozen:
        file = frozen / "events"
        config = configured(
            tmp_path / "c",
            f'{setting} = "{file}"',
            queues,
            "log_interval_s = 0",
            'mode = "enforce"',
            'fail_mode = "closed"',
            policy=THAT_PORT_POLICY.replace('"drop"', '"log"'),
        )

        def recorded() -> int:
            return file.read_bytes().count(b'"packet_judged"')

        # The disk thaws before the process is waited for.
        with (
            Datagrams(inside) as udp,
            GuardProcess(inside, tmp_path / "log", "--config", config),
        ):
            wait_for(lambda: f"{QUEUE} " in kernel_queues(inside))
            udp.send(20)
            wait_for(lambda: file.exists() and recorded() == 20)
            subprocess.run(["fsfreeze", "-f", frozen], check=True)
            try:
                for _ in range(5):
                    udp.send(20)
                    wait_for(lambda: idle(inside))
                assert udp.received() == [*range(20)] * 6
            finally:
                subprocess.run(["fsfreeze", "-u", frozen], check=True)
            wait_for(lambda: recorded() == 120)


def kernel_queues(namespace: Namespace) -> str:
    return namespace.run("cat", "/proc/net/netfilter/nfnetlink_queue").stdout


def test_stalled_reader_of_the_log(inside: Namespace, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    config = configured(tmp_path / "c", "log_interval_s = 0")
    try:
        with (
            Datagrams(inside) as udp,
            GuardProcess(inside, tmp_path / "log", "--config", config, stdout=writing) as guard,
        ):
            # Without the window, a note is logged first.
            while b"started" not in os.read(reading, 1 << 16):
                pass
            for _ in range(10):
                udp.send(200)
                wait_for(lambda: idle(inside))
            assert len(udp.received()) == 2000
            assert guard.stop() == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_reload_adopts_a_valid_policy_and_keeps_it_over_a_mistaken_one(
    inside: Namespace, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    config = configured(path, 'mode = "enforce"')
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        configured(path, 'mode = "enforce"', policy=THAT_PORT_POLICY.replace('"drop"', '"log"'))
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(guard.events("reloaded")))
        udp.send(10)
        wait_for(lambda: idle(inside))
        assert len(udp.received()) == 10
        configured(path, policy='[policy]\ndefault = "dorp"\non_unknwon = "log"\n')
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: bool(guard.events("reload_failed")))
        (failed,) = guard.events("reload_failed")
        assert len(failed["mistakes"]) == 2
        udp.send(10)
        wait_for(lambda: idle(inside))
        assert len(udp.received()) == 10
        assert guard.stop() == 0


def test_rules_come_and_go_with_the_daemon(namespace: Make, tmp_path: Path) -> None:
    inside = namespace("run")
    before = inside.run("iptables-save").stdout
    with GuardProcess(inside, tmp_path / "log", "--queue", str(QUEUE)).ready() as guard:
        assert f"--queue-num {QUEUE}" in inside.run("iptables-save").stdout
        assert f"--queue-num {QUEUE}" in inside.run("ip6tables-save").stdout
        assert guard.stop() == 0
    assert "NFQUEUE" not in inside.run("iptables-save").stdout
    assert "NFQ_GUARD" not in inside.run("iptables-save").stdout
    assert "NFQUEUE" not in before


def test_flushed_rules_are_reinstalled(namespace: Make, tmp_path: Path) -> None:
    inside = namespace("run")
    path = tmp_path / "c"
    path.write_text(f"[daemon]\nqueue = {QUEUE}\nverify_rules_s = 0.2\n")
    with GuardProcess(inside, tmp_path / "log", "--config", str(path)).ready() as guard:
        inside.run("iptables", "-t", "mangle", "-F")
        wait_for(lambda: bool(guard.events("rules_changed")))
        wait_for(lambda: f"--queue-num {QUEUE}" in inside.run("iptables-save").stdout)
        assert guard.stop() == 0
        assert guard.events("stopped")[0]["rules_changed"] >= 1
    assert "NFQ_GUARD" not in inside.run("iptables-save").stdout


def test_notifications_to_systemd(inside: Namespace, tmp_path: Path) -> None:
    """READY=1 once everything is in place, WATCHDOG=1 from the loop, RELOADING=1, STOPPING=1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        words = ("--queue", str(QUEUE), "--no-rules")
        with GuardProcess(inside, tmp_path / "log", *words, env=env) as guard:
            # In fail mode open, the queue of an earlier daemon does not stay bound.
            assert systemd.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=nfq-guard-queue"
            assert systemd.recv(1000).startswith(b"READY=1")
            assert guard.events("started")
            assert systemd.recv(1000) == b"WATCHDOG=1"
            guard.process.send_signal(signal.SIGHUP)
            heard = b""
            while b"RELOADING=1\nMONOTONIC_USEC=" not in heard:
                heard = systemd.recv(1000)
            # The watchdog may have been fed meanwhile.
            while heard != b"READY=1":
                heard = systemd.recv(1000)
            assert guard.stop() == 0
            while heard != b"STOPPING=1":
                heard = systemd.recv(1000)


def test_workers_bind_the_queue_that_an_earlier_daemon_kept(
    inside: Namespace, tmp_path: Path
) -> None:
    """Also while systemd, here the test, still holds its socket."""
    path = tmp_path / "c"
    path.write_text(f"[daemon]\nqueues = '{QUEUE}-{QUEUE + 1}'\nrules = 'none'\n")
    with inside.entered():
        earlier = QueueReader(QUEUE)
    with earlier:
        pass_on = f'exec 3<&{earlier.fileno()}; LISTEN_PID=$$ exec "$@"'
        with GuardProcess(
            inside,
            tmp_path / "log",
            *("--config", str(path)),
            prefix=("bash", "-c", pass_on, "bash"),
            env={"LISTEN_FDS": "1", "LISTEN_FDNAMES": passed_sockets.QUEUE},
            pass_fds=(earlier.fileno(),),
        ).ready() as guard:
            assert guard.stop() == 0


def test_reloads_under_load_lose_no_packet(inside: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "c"
    config = configured(
        path, 'mode = "enforce"', policy=THAT_PORT_POLICY.replace('"drop"', '"allow"')
    )
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        sent = 0
        # On a slow machine all these signals may lead to one reload: continue until there are two.
        while sent < 2000 or len(guard.events("reloaded")) < 2:
            guard.process.send_signal(signal.SIGHUP)
            if sent < 2000:
                udp.send(20)
                sent += 20
        wait_for(lambda: idle(inside))
        assert len(udp.received()) == sent
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
        assert stopped["reloads"] > 1
        assert stopped["queue_full_drops"] == stopped["reload_failures"] == 0


def test_metrics_over_http(inside: Namespace, tmp_path: Path) -> None:
    config = configured(tmp_path / "c", 'metrics_listen = "127.0.0.1:9477"')
    code = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9477/metrics').read().decode())"
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        udp.send(42)
        wait_for(lambda: idle(inside))
        packets = f'nfq_guard_packets_total{{queue="{QUEUE}"}} 42.0'
        # They are at most a second old.
        wait_for(lambda: packets in inside.run(sys.executable, "-c", code).stdout)
        assert guard.stop() == 0


def test_mistakes_bind_nothing(inside: Namespace, tmp_path: Path) -> None:
    config = configured(tmp_path / "c", "queue_lenght = 3", 'fail_mode = "shut"')
    with GuardProcess(inside, tmp_path / "log", "--config", config) as guard:
        assert guard.process.wait(timeout=limit(10)) == 2
        lines = guard.stderr().splitlines()
        assert [line.split(": ")[2] for line in lines] == [
            "daemon.queue_lenght",
            "daemon.fail_mode",
        ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--config", "/nonexistent/c.toml"], 2, "/nonexistent/c.toml"),
        (["--queue", "70000"], 2, "--queue"),
        (["--queues", "3:1"], 2, "--queues"),
    ],
)
def test_wrong_usage(
    inside: Namespace, tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    with GuardProcess(inside, tmp_path / "log", *words) as guard:
        assert guard.process.wait(timeout=limit(10)) == status
        assert said in guard.stderr()


def test_no_privilege(inside: Namespace) -> None:
    code = "import sys; from nfq_guard.cli import main; sys.exit(main(['run', '--no-rules']))"
    done = inside.run(
        *("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"),
        *("env", f"PYTHONPATH={import_path()}", sys.executable, "-c", code),
        check=False,
    )
    assert done.returncode == 77
    assert "CAP_NET_ADMIN" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_daemon_imports_neither_scapy_nor_prometheus() -> None:
    """Either import takes longer than the rest of the start."""
    code = (
        "import sys; import nfq_guard.cli.run; from nfq_guard.flows import bpf, ctnetlink\n"
        "heavy = {'scapy', 'prometheus_client', 'http.server', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": import_path()},
    )
    assert done.stdout == "[]\n"


def test_a_policy_on_trial_is_logged_and_not_carried_out(inside: Namespace, tmp_path: Path) -> None:
    """It would drop what the policy allows; only the event shows that."""
    (tmp_path / "trial.toml").write_text(THAT_PORT_POLICY.replace("log", "allow"))
    config = configured(
        tmp_path / "c",
        "log_interval_s = 0",
        'mode = "enforce"',
        'shadow = "trial.toml"',
        policy='[policy]\ndefault = "allow"\n',
    )
    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", config).ready() as guard,
    ):
        udp.send(3)
        wait_for(lambda: len(guard.events("packet_judged")) == 3)
        assert udp.received() == [0, 1, 2]
        (tmp_path / "trial.toml").write_text('[policy]\ndefault = "allow"\n')
        guard.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(guard.events("reloaded")) == 1)
        udp.send(3)
        wait_for(lambda: idle(inside))
        assert guard.stop() == 0
        judged = guard.events("packet_judged")
        assert len(judged) == 3
        for one in judged:
            assert (one["action"], one["verdict"]) == ("allow", "accept")
            assert one["shadow"] == {"rule": "that-port", "action": "drop"}


def test_too_few_descriptors_are_one_line(namespace: Make, tmp_path: Path) -> None:
    """Wherever the start needs one more: no bug, and systemd restarts the daemon."""
    inside = namespace("few")
    config = tmp_path / "c"
    config.write_text(
        f'[daemon]\nqueue = {QUEUE}\ncontrol_socket = "{tmp_path}/control"\n'
        f'events_file = "{tmp_path}/events"\nlog = "{tmp_path}/log"\n'
        f'metrics_file = "{tmp_path}/metrics"\nmetrics_listen = "127.0.0.1:9499"\n'
        f"{THAT_PORT_POLICY}",
        encoding="utf-8",
    )
    for most in range(10, 100, 5):
        limited = ("prlimit", f"--nofile={most}")
        words = ("--config", str(config))
        with GuardProcess(inside, tmp_path / "out", *words, prefix=limited) as guard:
            wait_for(lambda: guard.process.poll() is not None or started(tmp_path / "log"))
            if guard.process.poll() is None:
                assert guard.stop() == 0
                assert most > 10
                break
            line = guard.stderr()
            assert line.count("\n") == 1, line
            assert "Too many open files" in line
            assert guard.process.returncode == 1
    assert '"traceback"' not in (tmp_path / "log").read_text(encoding="utf-8")


def started(log: Path) -> bool:
    """Whether a daemon has logged that it serves."""
    return log.exists() and '"event":"started"' in log.read_text(encoding="utf-8")
