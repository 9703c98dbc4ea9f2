# SPDX-License-Identifier: MIT
"""The service under a real systemd."""

import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from nfq_guard.lab.pace import limit
from tests.systemd import forbidden
from tests.systemd.conftest import Guest

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.xdist_group("systemd"),
    pytest.mark.timeout(limit(180)),
]

# CAP_NET_ADMIN by its number.
CAPABILITIES = 1 << 12
PINS = "/sys/fs/bpf/nfq-guard"
# The best evidence that the running kernel offers.
EVIDENCE: Final = (
    "bpf" if [int(part) for part in platform.release().split(".")[:2]] >= [5, 18] else "kernel-log"
)


# Of the directories in /run, /var/lib and /var/log.
MODES: Final = ("drwx--x---", "drwxr-x---", "drwxr-x---")
# Rules of iptables-nft that queue packets: for both hooks and both families.
RULES: Final = 4
MAIN: Final = "$(systemctl show --value -p MainPID nfq-guard)"


@contextmanager
def overridden(guest: Guest, text: str) -> Iterator[None]:
    """The service with this text in a drop-in of its unit, restarted; in the end none is left."""
    drop_in = "/run/systemd/system/nfq-guard.service.d/test.conf"
    again = "systemctl daemon-reload; systemctl reset-failed nfq-guard"
    guest.sh(
        f"mkdir -p $(dirname {drop_in}); printf '{text}\n' >{drop_in}; "
        f"{again}; systemctl restart nfq-guard"
    )
    try:
        yield
    finally:
        guest.sh(
            f"rm {drop_in}; {again}; systemctl stop nfq-guard; nfq-guard prepare --remove --rules"
        )


def rules(guest: Guest) -> int:
    """The number of rules that queue packets, in iptables-nft."""
    # The programs warn if there are legacy tables too.
    saved = "cat <(iptables-save) <(ip6tables-save) 2>/dev/null"
    return int(guest.sh(f"{saved} | grep -c NFQUEUE", check=False).split()[-1])


def journal(guest: Guest, pid: str) -> list[dict[str, str]]:
    """The events that the process logged, with their fields as the journal stores them."""
    text = guest.sh(f"journalctl _PID={pid} --no-pager -o json")
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [one for one in found if "NFQ_EVENT" in one]


def event(guest: Guest, pid: str, name: str) -> dict[str, str]:
    """The first event of that name; fails the test if none arrives."""

    def found() -> dict[str, str] | None:
        return next((one for one in journal(guest, pid) if one["NFQ_EVENT"] == name), None)

    guest.until(lambda: found() is not None, f"event {name}")
    return found() or {}


def test_ready_means_queue_evidence_and_rules(guest: Guest) -> None:
    assert guest.show("ActiveState") == "active"
    pid = guest.show("MainPID")
    assert guest.sh("cat /proc/net/netfilter/nfnetlink_queue").split()[0] == "0"
    assert rules(guest) == RULES
    started = event(guest, pid, "started")
    assert started["NFQ_EVIDENCE"] == EVIDENCE
    assert started["NFQ_MODE"] == "dry-run"
    assert started["SYSLOG_IDENTIFIER"] == "nfq-guard"
    assert started["_SYSTEMD_UNIT"] == "nfq-guard.service"
    assert started["MESSAGE_ID"]


def test_own_user_with_one_capability(guest: Guest) -> None:
    status = guest.sh(f"cat /proc/{guest.show('MainPID')}/status")
    user = guest.sh("id -u nfq-guard").strip()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert found["Uid"].split() == [user] * 4
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(found[kind], 16) == CAPABILITIES
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_what_the_sandbox_does_not_let_work(guest: Guest) -> None:
    """A program runs in place of the daemon, with the unit's privileges and sandbox."""
    unit = "/run/systemd/system/nfq-guard-forbidden.service"
    tried = Path(forbidden.__file__).read_text(encoding="ascii")
    # Permissions of /run must not hide what only the sandbox forbids.
    guest.sh(
        f"chmod 1777 /run; cat >/run/forbidden.py <<'END'\n{tried}\nEND\n"
        f"sed -e '/^Exec/d; s/^Type=.*/Type=oneshot/; /^WatchdogSec/d; /^Restart=/d' "
        "-e 's,^\\[Service\\],&\\nExecStart=/usr/bin/python3 -I /run/forbidden.py\\n"
        f"StandardOutput=file:/run/forbidden.out,' /etc/systemd/system/nfq-guard.service >{unit}; "
        "systemctl daemon-reload; systemctl start nfq-guard-forbidden"
    )
    try:
        assert json.loads(guest.sh("cat /run/forbidden.out")) == list(forbidden.ALLOWED)
    finally:
        guest.sh(
            f"rm -f {unit} /run/forbidden.py /run/forbidden.out /var/lib/nfq-guard/allowed; "
            "chmod 755 /run; systemctl daemon-reload"
        )


def test_exposure_and_syntax(guest: Guest) -> None:
    rated = guest.sh("systemd-analyze security nfq-guard --no-pager")
    found = re.search(r"Overall exposure level for nfq-guard.service: ([\d.]+)", rated)
    assert found is not None
    assert float(found[1]) <= 1.2
    for unit in ("nfq-guard.service", "nfq-guard@.service", "nfq-guard-metrics.socket"):
        assert guest.sh(f"systemd-analyze verify /etc/systemd/system/{unit}") == ""


def test_its_group_reads_the_counters_of_the_queues(guest: Guest) -> None:
    """Its group owns the file while the service runs; the daemon is not in group root."""
    file = "/proc/net/netfilter/nfnetlink_queue"
    groups = guest.sh(f"grep Groups: /proc/{guest.show('MainPID')}/status").split()[1:]
    assert groups in ([], [guest.sh("id -g nfq-guard").strip()])
    assert guest.sh(f"stat -c '%G %a' {file}").split() == ["nfq-guard", "440"]
    guest.sh("systemctl stop nfq-guard")
    assert guest.sh(f"stat -c %G {file}").strip() == "root"


def fetched(guest: Guest, path: str, port: int = 9477) -> str:
    """The HTTP status and the body of a response, or the class of the error."""
    code = (
        "import sys, urllib.request as r\n"
        f"try: a = r.urlopen('http://127.0.0.1:{port}{path}')\n"
        "except r.HTTPError as e: a = e\n"
        "except OSError as e: sys.exit(type(e.reason).__name__)\n"
        "print(a.status, a.read().decode())"
    )
    return guest.sh(f'python3 -c "{code}"', check=False).strip()


def test_metrics_by_default(guest: Guest) -> None:
    """A socket unit listens on loopback: the daemon opens no socket, and no request starts it."""
    assert fetched(guest, "/healthz") == "200 ok"
    assert fetched(guest, "/").startswith("404")
    text = fetched(guest, "/metrics")
    assert text.startswith("200")
    assert 'nfq_guard_packets_total{queue="0"}' in text
    # Absent until the first check of the rules has ended, for which the start does not wait.
    in_place = "nfq_guard_rules_in_place 1.0"
    guest.until(lambda: in_place in fetched(guest, "/metrics"), "the rules are checked")
    families = guest.show("RestrictAddressFamilies")
    assert "AF_INET" not in families
    guest.sh("systemctl stop nfq-guard")
    assert fetched(guest, "/healthz") == "ConnectionRefusedError"
    assert guest.show("ActiveState") == "inactive"
    guest.sh("systemctl start nfq-guard")
    assert fetched(guest, "/healthz") == "200 ok"
    guest.sh("kill -9 $(systemctl show --value -p MainPID nfq-guard)")
    guest.until(lambda: fetched(guest, "/healthz") == "200 ok", "the restarted daemon serves")


def test_metrics_after_many_restarts(guest: Guest) -> None:
    """By default, systemd refuses to start a unit a sixth time within ten seconds."""
    guest.sh("for each in 1 2 3 4 5 6 7; do systemctl restart nfq-guard; done")
    assert fetched(guest, "/healthz") == "200 ok"


def test_a_journal_that_is_gone(guest: Guest) -> None:
    """No packet is delayed, and the events of that time are in the journal once it returns."""
    guest.configure('mode = "dry-run"\nlog_interval_s = 0\nlog_allowed = true')
    guest.sh("systemctl restart nfq-guard")
    units = "systemd-journald{,-dev-log,-audit}.socket systemd-journald.service"

    def judged() -> int:
        status = json.loads(guest.sh("nfq-guard status --format json"))
        return int(status["queues"][0]["packets"])

    def strays(port: int) -> None:
        guest.sh(f"python3 -c '{_STRAYS}' {port}")

    guest.sh(f"systemctl stop {units}; rm -f /run/systemd/journal/socket")
    try:
        strays(30_000)
        guest.until(lambda: judged() >= 5, "packets are judged without a journal")
        assert int(
            json.loads(guest.sh("nfq-guard status --format json"))["queues"][0]["log_errors"]
        )
    finally:
        guest.sh(f"systemctl start {units}")
    pid = guest.show("MainPID")
    guest.until(
        lambda: any(one.get("NFQ_SPORT") == "30000" for one in journal(guest, pid)),
        "events from before are in the journal",
    )


def test_settings_that_need_a_drop_in(guest: Guest) -> None:
    """The files of the container runtime belong to root; the mistake shows that one was read."""
    results = "/var/lib/cni/results"
    guest.sh(f"install -d -m 700 {results}; install -m 600 /dev/null {results}/net-left-eth0")
    listen = 'metrics_listen = "127.0.0.1:9478"'
    guest.configure(f'mode = "dry-run"\n{listen}\npods_dir = "{results}"')
    guest.sh("systemctl restart nfq-guard", check=False)
    told = guest.sh("journalctl -u nfq-guard --no-pager -n 20")
    assert "daemon.metrics_listen: 127.0.0.1:9478" in told
    assert "unless its unit has metrics.conf" in told
    drop_ins = "/etc/systemd/system/nfq-guard.service.d"
    guest.sh(
        f"install -Dt {drop_ins} /usr/local/share/doc/nfq-guard/{{metrics,pods}}.conf; "
        "systemctl daemon-reload; systemctl reset-failed nfq-guard; systemctl restart nfq-guard"
    )
    try:
        assert fetched(guest, "/metrics", 9478).startswith("200")
        unread = event(guest, guest.show("MainPID"), "pods_unread")
        assert (unread["NFQ_FILES"], "not JSON" in unread["NFQ_PROBLEM"]) == ("1", True)
    finally:
        guest.sh(
            f"rm -r {drop_ins}/metrics.conf {drop_ins}/pods.conf /var/lib/cni; "
            "systemctl daemon-reload"
        )


def pins(guest: Guest, instance: str = "nfq-guard") -> list[str]:
    """The names of an instance's pins."""
    return guest.sh(f"ls {PINS}/{instance} 2>/dev/null", check=False).split()


def evidence(guest: Guest, socket: str = "/run/nfq-guard/control.sock") -> str:
    """The evidence that `nfq-guard status` reports."""
    found: str = json.loads(guest.sh(f"nfq-guard status --format json --socket {socket}"))[
        "evidence"
    ]
    return found


def note(guest: Guest) -> str:
    """The first note in the log of the running daemon: that on its evidence."""
    pid = guest.show("MainPID")
    return event(guest, pid, "note")["MESSAGE"]


def test_a_pin_lasts_as_long_as_the_service(guest: Guest) -> None:
    assert evidence(guest) == "bpf"
    (before,) = pins(guest)
    assert guest.sh(f"stat -c '%U:%G %a' {PINS}/nfq-guard").strip() == "root:nfq-guard 750"
    guest.sh("systemctl restart nfq-guard")
    assert evidence(guest) == "bpf"
    pid = guest.show("MainPID")
    guest.sh(f"kill -9 {pid}")
    guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")
    guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
    assert evidence(guest) == "bpf"
    assert pins(guest) == [before]
    guest.sh("systemctl stop nfq-guard")
    assert guest.sh(f"ls -d {PINS}", check=False).strip().endswith("No such file or directory")


def test_an_old_pin_is_replaced(guest: Guest) -> None:
    (name,) = pins(guest)
    old = f"{'0' * 16}-0"
    guest.sh(
        f"systemctl stop nfq-guard; nfq-guard prepare --quiet; "
        f"mv {PINS}/nfq-guard/{name} {PINS}/nfq-guard/{old}"
    )
    assert pins(guest) == [old]
    guest.sh("systemctl start nfq-guard")
    assert evidence(guest) == "bpf"
    assert pins(guest) == [name]


@pytest.mark.parametrize(
    ("before_start", "words"),
    [
        ("chmod 666 {pin}/program", "program is writable by others (mode 0666)"),
        ("chown daemon {pin}/memory", "memory belongs to user 1, not to root"),
        ("mv {pin} {old}", "is of another version of the program"),
        ("/usr/local/sbin/nfq-guard prepare --remove", "no pinned program is found"),
    ],
)
def test_a_pin_that_may_not_be_used_is_named(guest: Guest, before_start: str, words: str) -> None:
    """The daemon uses the next best evidence."""
    (name,) = pins(guest)
    pin = f"{PINS}/nfq-guard/{name}"
    command = before_start.format(pin=pin, old=f"{PINS}/nfq-guard/{'0' * 16}-0")
    drop_in = "/run/systemd/system/nfq-guard.service.d/pin.conf"
    guest.sh(
        f"mkdir -p $(dirname {drop_in}); "
        f"printf '[Service]\nExecStartPre=+/bin/sh -c \"{command}\"\n' >{drop_in}; "
        "systemctl daemon-reload; systemctl restart nfq-guard"
    )
    try:
        assert evidence(guest) == "ctnetlink"
        assert words in note(guest)
        assert guest.show("ActiveState") == "active"
    finally:
        guest.sh(f"rm {drop_in}; systemctl daemon-reload")


_LOG: Final = {
    "nf_conntrack_log_invalid": "255",
    "nf_log/2": "nfnetlink_log",
    "nf_log/10": "nfnetlink_log",
}


def log_sysctls(guest: Guest) -> dict[str, str]:
    """The values of the sysctls of conntrack's log."""
    paths = " ".join(f"/proc/sys/net/netfilter/{name}" for name in _LOG)
    return dict(zip(_LOG, guest.sh(f"cat {paths}").split(), strict=True))


def test_the_kernels_log_as_evidence(guest: Guest) -> None:
    """Root turns the log on before each start, also after a crash; a stop restores the sysctls."""
    guest.sh("systemctl stop nfq-guard")
    before = log_sysctls(guest)
    assert before["nf_conntrack_log_invalid"] == "0"
    guest.configure('evidence = "kernel-log"')
    guest.sh("systemctl restart nfq-guard")
    assert evidence(guest) == "kernel-log"
    assert log_sysctls(guest) == _LOG
    pid = guest.show("MainPID")
    status = guest.sh(f"grep CapEff /proc/{pid}/status")
    assert int(status.split()[1], 16) == CAPABILITIES
    assert guest.sh("stat -c '%U %a' /run/nfq-guard-kernel-log").strip() == "root 755"
    guest.sh(f"kill -9 {pid}")
    guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")
    guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
    assert evidence(guest) == "kernel-log"
    assert log_sysctls(guest) == _LOG
    guest.sh("systemctl stop nfq-guard")
    assert log_sysctls(guest) == before
    left = guest.sh("ls -d /run/nfq-guard-kernel-log", check=False)
    assert left.strip().endswith("No such file or directory")


def test_a_host_that_logs_invalid_packets_is_left_alone(guest: Guest) -> None:
    setting = "net.netfilter.nf_conntrack_log_invalid"
    guest.configure('evidence = "kernel-log"')
    guest.sh(f"systemctl stop nfq-guard; sysctl -q {setting}=6; systemctl start nfq-guard")
    try:
        assert evidence(guest) == "ctnetlink"
        assert guest.show("ActiveState") == "active"
        told = guest.sh("journalctl -u nfq-guard --no-pager | tail -n 30")
        assert "left alone: net.netfilter.nf_conntrack_log_invalid is 6 already" in told
        assert guest.sh(f"sysctl -n {setting}").strip() == "6"
    finally:
        guest.sh(f"sysctl -q {setting}=0")


def test_a_restart_replaces_the_evidence_of_an_earlier_configuration(guest: Guest) -> None:
    """Its stop leaves what was prepared; the start removes what is not wanted any more."""
    guest.sh("systemctl stop nfq-guard")
    before = log_sysctls(guest)
    for wanted in ("auto", "kernel-log", "auto", "ctnetlink"):
        guest.configure(f'evidence = "{wanted}"')
        guest.sh("systemctl restart nfq-guard")
        found = evidence(guest)
        assert found == (EVIDENCE if wanted == "auto" else wanted)
        assert bool(pins(guest)) is (found == "bpf")
        assert (log_sysctls(guest) == before) is (found != "kernel-log")


def test_reload_swaps_the_policy_or_keeps_the_old(guest: Guest) -> None:
    pid = guest.show("MainPID")
    guest.configure('mode = "dry-run"', 'include = "preset:observe"')
    guest.sh("systemctl reload nfq-guard")
    event(guest, pid, "reloaded")
    guest.configure('mode = "dry-run"', "nonsense = 1")
    assert guest.sh("systemctl reload nfq-guard || echo failed").splitlines()[-1] == "failed"
    assert "policy.nonsense" in str(event(guest, pid, "reload_failed")["NFQ_MISTAKES"])
    assert guest.show("MainPID") == pid
    assert guest.show("ActiveState") == "active"


def test_reload_takes_the_mode_and_names_settings_that_take_a_restart(guest: Guest) -> None:
    pid = guest.show("MainPID")
    guest.configure('mode = "enforce"')
    guest.sh("systemctl reload nfq-guard")
    assert event(guest, pid, "mode_changed")["NFQ_NOW"] == "enforce"
    guest.configure('mode = "enforce"\nbatch = 7')
    assert guest.sh("systemctl reload nfq-guard || echo failed").splitlines()[-1] == "failed"
    assert "daemon.batch changed too" in guest.sh("journalctl -u nfq-guard --no-pager -n 20")
    assert guest.show("MainPID") == pid
    assert guest.show("ActiveState") == "active"


def test_check_refuses_what_the_sandbox_does_not_let_work(guest: Guest) -> None:
    """The drop-ins of the unit count."""
    drop_in = "/run/systemd/system/nfq-guard.service.d"

    def check(more: str) -> str:
        guest.sh(
            f"mkdir -p {drop_in}; cp /usr/local/share/doc/nfq-guard/metrics.conf {drop_in}; "
            f"printf '[Service]\n{more}\n' >{drop_in}/more.conf; systemctl daemon-reload"
        )
        return guest.sh("nfq-guard check; echo $?")

    guest.sh("install -d -o nfq-guard /var/lib/node_exporter")
    guest.configure(
        'metrics_listen = "0.0.0.0:9477"\nmetrics_file = "/var/lib/node_exporter/guard.prom"'
    )
    try:
        said = check("")
        assert "daemon.metrics_listen: expected an address of this host alone" in said
        assert "daemon.metrics_file: expected a file in /run/nfq-guard, /var/lib/nfq" in said
        assert said.splitlines()[-1] == "2"
        said = check("IPAddressAllow=10.0.0.0/8\nReadWritePaths=-/var/lib/node_exporter")
        assert said.splitlines()[-1] == "0"
        guest.configure('pods_dir = "/var/lib/cni/results"\nlog = "/home/log"')
        said = check("ProtectSystem=no")
        assert "daemon.log: expected" in said
        guest.configure('pods_dir = "/var/lib/cni/results"')
        said = check("")
        assert "nfq-guard.service may not read files of root" in said
        assert said.splitlines()[-1] == "0"
        guest.sh(f"cp /usr/local/share/doc/nfq-guard/pods.conf {drop_in}")
        assert "files of root" not in check("")
    finally:
        # Not those of the machine.
        guest.sh(
            f"rm -f {drop_in}/{{metrics,more,pods}}.conf; rmdir /var/lib/node_exporter; "
            "systemctl daemon-reload"
        )


def test_check_knows_the_user_of_the_service(guest: Guest) -> None:
    """Which is not the one who runs it: root reads every file."""
    guest.configure('user = "nobody"')
    said = guest.sh("nfq-guard check", check=False)
    assert "daemon.user: expected nothing, because nfq-guard.service runs as nfq-guard" in said
    doctor = guest.sh("nfq-guard doctor", check=False)
    assert "cannot use this configuration: /etc/nfq-guard/nfq-guard.toml" in doctor
    policy = "/etc/nfq-guard/site.toml"
    guest.configure("", f'include = "{policy}"')
    guest.sh(f"printf '[policy]\ndefault = \"log\"\n' >{policy}; chmod 600 {policy}")
    try:
        assert f"may read as nfq-guard, found {policy}" in guest.sh("nfq-guard check", check=False)
        guest.sh(f"chgrp nfq-guard {policy}; chmod 640 {policy}; nfq-guard check")
        guest.sh("systemctl restart nfq-guard")
        assert "config_refused" not in guest.sh("nfq-guard status")
    finally:
        guest.sh(f"rm {policy}")


def test_check_knows_what_the_service_cannot_write(guest: Guest) -> None:
    """Although root, who runs it, can: files and directories of root, and missing directories."""
    log, data = "/var/log/nfq-guard/own", "/var/lib/nfq-guard/own"
    guest.sh(f"rm -rf {log} {data}")
    for setting, script, expected in (
        (f'log = "{log}"', f"install -m 600 /dev/null {log}", "a file that nfq-guard.service may"),
        (f'metrics_file = "{data}/m.prom"', "true", "a file in a directory that exists"),
        (f'metrics_file = "{data}/m.prom"', f"mkdir {data}", "a file that nfq-guard.service may"),
        (f'capture_dir = "{data}"', "true", "a directory that nfq-guard.service may write"),
    ):
        guest.configure(setting)
        guest.sh(script)
        assert f"expected {expected}" in guest.sh("nfq-guard check", check=False), setting
    assert "cannot use this configuration" in guest.sh("nfq-guard doctor", check=False)
    try:
        guest.sh(f"chown nfq-guard {log} {data}")
        guest.configure(f'log = "{log}"\nmetrics_file = "{data}/m.prom"\ncapture_dir = "{data}"')
        guest.sh(f"nfq-guard check; systemctl restart nfq-guard; test -s {log}")
        guest.until(lambda: bool(guest.sh(f"ls {data}")), "its metrics")
    finally:
        guest.sh(f"rm -r {log} {data}")


def test_reload_finds_a_control_socket_of_any_path(guest: Guest) -> None:
    """Without one, the file is checked before the daemon gets a signal."""
    for path in ("/run/nfq-guard/another.sock", ""):
        guest.configure(f'control_socket = "{path}"')
        guest.sh("systemctl restart nfq-guard")
        pid = guest.show("MainPID")
        guest.sh("systemctl reload nfq-guard")
        event(guest, pid, "reloaded")
        guest.configure(f'control_socket = "{path}"', "nonsense = 1")
        assert guest.sh("systemctl reload nfq-guard || echo failed").splitlines()[-1] == "failed"
        assert guest.show("MainPID") == pid


def test_the_rules_follow_a_mode_that_is_reloaded(guest: Guest) -> None:
    """In the sandbox of the unit, with iptables-nft."""
    guest.configure('mode = "dry-run"\nfail_mode = "kernel-drop"')
    guest.sh("systemctl restart nfq-guard")
    pid = guest.show("MainPID")
    for mode in ("enforce", "dry-run", "enforce"):
        guest.configure(f'mode = "{mode}"\nfail_mode = "kernel-drop"')
        guest.sh("systemctl reload nfq-guard && nfq-guard rules verify")
        assert ("NFQ_GUARD_DROP" in guest.sh("iptables-save")) == (mode == "enforce")
    assert guest.show("MainPID") == pid


def test_legacy_rules_follow_a_mode(guest: Guest) -> None:
    """The daemon may not change them: `reload` and `mode` do, as root, without a restart."""

    def configure(mode: str) -> None:
        lines = (f'mode = "{mode}"', 'fail_mode = "kernel-drop"', 'backend = "legacy"')
        guest.configure("\n".join(lines))

    def follow(mode: str) -> None:
        guest.sh("nfq-guard rules verify")
        dropping = "NFQ_GUARD_DROP" in guest.sh("iptables-legacy-save; ip6tables-legacy-save")
        assert dropping == (mode == "enforce")
        status = json.loads(guest.sh("nfq-guard status --format json"))
        fail_mode = "kernel-drop" if mode == "enforce" else "open"
        assert (status["mode"], status["fail_mode"]) == (mode, fail_mode)

    configure("dry-run")
    guest.sh("systemctl restart nfq-guard")
    pid = guest.show("MainPID")
    try:
        for mode in ("enforce", "dry-run", "enforce"):
            configure(mode)
            guest.sh("systemctl reload nfq-guard")
            follow(mode)
        for mode in ("dry-run", "enforce"):
            guest.sh(f"nfq-guard mode {mode}")
            configure(mode)  # what `rules verify` compares with
            follow(mode)
        assert guest.show("MainPID") == pid
        assert "Cannot store" not in guest.sh("journalctl -u nfq-guard --no-pager -o cat")
        capabilities = guest.sh(f"grep -h Cap /proc/{pid}/status")
        assert capabilities.count("0000000000001000") == 5, "CAP_NET_ADMIN alone"
    finally:
        guest.sh("systemctl stop nfq-guard")


def test_a_restart_carries_on_with_the_last_good_configuration(guest: Guest) -> None:
    """The mistake in the file is reported, and the host stays guarded."""
    guest.configure('mode = "enforce"\nfail_mode = "closed"\nqueue = 3')
    guest.sh("systemctl restart nfq-guard")
    guest.configure('mode = "enforce"\nqueue = 4\nnonsense = 1')
    guest.sh("systemctl restart nfq-guard")
    refused = event(guest, guest.show("MainPID"), "config_refused")
    assert "daemon.nonsense" in str(refused["NFQ_MISTAKES"])
    assert guest.sh("cat /proc/net/netfilter/nfnetlink_queue").split()[0] == "3"
    assert "the configuration has mistakes" in guest.show("StatusText")
    told = guest.sh("nfq-guard status")
    assert "daemon.nonsense" in told
    assert "enforce" in told
    saved = guest.sh("iptables-save -t mangle | grep ^-A")
    assert "--queue-num 3" in saved
    assert "--queue-bypass" not in saved
    guest.sh(": >/etc/nfq-guard/nfq-guard.toml")
    guest.sh("systemctl restart nfq-guard")
    refused = event(guest, guest.show("MainPID"), "config_refused")
    assert "a table [daemon] or [policy]" in str(refused["NFQ_MISTAKES"])
    assert guest.sh("iptables-save -t mangle | grep ^-A") == saved
    guest.sh(f"kill -9 {guest.show('MainPID')}")
    guest.until(lambda: guest.show("NRestarts") == "1", "a restart")
    guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
    guest.sh("systemctl stop nfq-guard")
    assert rules(guest) == 0


def test_a_loop_that_hangs_is_restarted_by_the_watchdog(guest: Guest) -> None:
    pid = guest.show("MainPID")
    guest.sh(f"kill -STOP {pid}")
    guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")
    guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
    told = guest.sh("journalctl -u nfq-guard --no-pager")
    assert "Watchdog timeout" in told
    assert f"Killing process {pid} (nfq-guard) with signal SIGABRT" in told
    assert rules(guest) == RULES


def test_a_daemon_that_is_killed_is_restarted(guest: Guest) -> None:
    pid = guest.show("MainPID")
    guest.sh(f"kill -9 {pid}")
    guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")
    guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
    assert rules(guest) == RULES
    assert guest.sh("pgrep -cu nfq-guard").strip() == "1"


def test_the_next_daemon_states_what_a_killed_one_had_not_recorded(guest: Guest) -> None:
    """Five packets have an event each; those that repeat them wait for theirs."""
    guest.configure('mode = "enforce"', 'default = "log"')
    guest.sh("systemctl restart nfq-guard")
    pid = guest.show("MainPID")
    guest.sh(f"python3 -c '{_STRAYS}' 30000; python3 -c '{_STRAYS}' 30000")

    def judged() -> bool:
        status = json.loads(guest.sh("nfq-guard status --format json"))
        return bool(status["queues"][0]["packets"] == 10)

    guest.until(judged, "the packets are judged")
    guest.sh(f"kill -9 {pid}")
    guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")
    pid = guest.show("MainPID")
    found = event(guest, pid, "packets_unrecorded")
    assert (found["NFQ_QUEUE"], found["NFQ_PACKETS"]) == ("0", "5")
    assert 0 < float(event(guest, pid, "unserved_time")["NFQ_UNSERVED_S"]) < 60


def test_what_a_killed_daemon_left_is_taken_only_where_it_is_right(guest: Guest) -> None:
    """After a kill, the start reuses rules and pins, and makes them anew where they are wrong."""

    def kill(script: str) -> None:
        guest.until(lambda: guest.show("ActiveState") == "active", "the service is up")
        pid = guest.show("MainPID")
        guest.sh(f"systemctl reset-failed nfq-guard; {script}; kill -9 {pid}")
        guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")

    def right() -> bool:
        return guest.show("ActiveState") == "active" and rules(guest) == RULES

    kill("true")
    guest.until(right, "rules and daemon")
    assert "killed" not in guest.sh("ls -A /run/nfq-guard")
    # The rules are gone.
    kill("iptables -t mangle -F; ip6tables -t mangle -F")
    guest.until(right, "the rules are back")
    # The configuration has changed since the daemon loaded it.
    kill("echo >>/etc/nfq-guard/nfq-guard.toml; rmdir /run/nfq-guard/killed 2>/dev/null")
    guest.until(right, "rules and daemon after a changed file")
    # A link that the daemon's user made in place of the directory is not followed.
    kill("ln -s /etc/nfq-guard /run/nfq-guard/killed")
    guest.until(right, "rules and daemon beside a link")
    assert guest.sh("ls /etc/nfq-guard/nfq-guard.toml; rm /run/nfq-guard/killed")


def test_what_a_killed_daemon_left_is_not_taken_once_systemd_gave_up(guest: Guest) -> None:
    """It has closed the sockets through which the daemon reads the tables of iptables-legacy."""
    guest.configure('mode = "enforce"\nfail_mode = "closed"')
    with overridden(guest, r"[Service]\nRestart=no"):
        kept = guest.show("NFileDescriptorStore")
        guest.sh(f"kill -9 {guest.show('MainPID')}")
        guest.until(lambda: guest.show("ActiveState") == "failed", "the unit failed")
        assert guest.show("NFileDescriptorStore") == "0"
        guest.sh("systemctl reset-failed nfq-guard; systemctl start nfq-guard")
        guest.until(lambda: guest.show("NFileDescriptorStore") == kept, "all sockets again")
        assert rules(guest) == RULES


def test_a_flushed_ruleset_is_put_back(guest: Guest) -> None:
    """By the daemon itself, in its sandbox and with CAP_NET_ADMIN alone."""
    guest.configure('mode = "enforce"\nfail_mode = "closed"')
    guest.sh("systemctl restart nfq-guard")
    pid = guest.show("MainPID")
    assert rules(guest) == RULES
    guest.sh("nft flush ruleset")
    guest.until(lambda: rules(guest) == RULES, "the rules are back", timeout_s=30)
    assert guest.show("MainPID") == pid
    assert event(guest, pid, "rules_changed")


def test_a_daemon_that_cannot_put_rules_back_is_restarted(guest: Guest) -> None:
    """Root puts them back before the daemon starts again."""
    guest.configure('mode = "enforce"\nfail_mode = "closed"')
    guest.sh(
        "mkdir -p /run/systemd/system/nfq-guard.service.d /run/broken; "
        "printf '[Service]\nEnvironment=PATH=/run/broken:/usr/sbin:/usr/bin:/sbin:/bin\n' "
        ">/run/systemd/system/nfq-guard.service.d/test.conf; "
        'printf \'#!/bin/sh\n[ $(id -u) = 0 ] && exec /usr/sbin/iptables-nft-restore "$@"\n'
        "exit 1\n' >/run/broken/iptables-nft-restore; "
        "chmod -R a+rx /run/broken; "
        "systemctl daemon-reload; systemctl restart nfq-guard"
    )
    try:
        guest.sh("nft flush ruleset")
        guest.until(lambda: rules(guest) == RULES, "the rules are back", timeout_s=60)
        assert guest.show("NRestarts") != "0"
    finally:
        guest.sh(
            "rm -r /run/systemd/system/nfq-guard.service.d/test.conf /run/broken; "
            "systemctl daemon-reload; systemctl reset-failed nfq-guard; "
            "systemctl restart nfq-guard"
        )


@pytest.mark.parametrize(
    ("fail_mode", "flush"),
    [
        ("closed", "iptables-legacy -t mangle -F PREROUTING"),
        # What drops unjudged packets is in the table that is flushed where none is named.
        ("kernel-drop", "iptables-legacy -F"),
    ],
)
def test_a_flush_of_legacy_rules_is_noticed(guest: Guest, fail_mode: str, flush: str) -> None:
    """The sandboxed daemon cannot run iptables-legacy: it ends, and root installs them anew."""

    def legacy() -> int:
        return int(guest.sh("iptables-legacy-save | grep -c '^-A.*NFQ'", check=False))

    guest.configure(f'mode = "enforce"\nfail_mode = "{fail_mode}"\nbackend = "legacy"')
    guest.sh("systemctl restart nfq-guard")
    try:
        pid = guest.show("MainPID")
        guest.until(lambda: "in place" in guest.sh("nfq-guard status"), "the rules are seen")
        before = legacy()
        assert before
        guest.sh(flush)
        guest.until(lambda: guest.show("MainPID") not in {pid, "0"}, "a new daemon")
        guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
        assert legacy() == before
        guest.until(lambda: "in place" in guest.sh("nfq-guard status"), "the rules are seen again")
        # Before the daemon looks for the first time.
        guest.sh(f"systemctl reset-failed nfq-guard; systemctl restart nfq-guard; {flush}")
        guest.until(lambda: legacy() == before, "the rules are back")
        guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
    finally:
        guest.sh("systemctl stop nfq-guard")
        assert legacy() == 0


def test_rules_beside_those_of_others_in_legacy_tables(guest: Guest) -> None:
    """Root chooses legacy; the daemon, which cannot read it, must not install others."""
    others = "iptables-legacy -t mangle -A FORWARD -j ACCEPT"
    guest.sh(f"systemctl stop nfq-guard; {others}; systemctl start nfq-guard")
    try:
        guest.until(lambda: "in place" in guest.sh("nfq-guard status"), "the rules are seen")
        assert "NFQUEUE" in guest.sh("iptables-legacy-save")
        assert rules(guest) == 0, "none in iptables-nft"
    finally:
        guest.sh("systemctl stop nfq-guard; iptables-legacy -t mangle -F FORWARD")


def test_rules_of_legacy_iptables_before_conntrack(guest: Guest) -> None:
    """Root reads them at the start; the daemon notices that they have changed since."""
    raw = "iptables-legacy -t raw"
    guest.configure("verify_rules_s = 1")
    guest.sh(
        f"systemctl stop nfq-guard; {raw} -A PREROUTING -p tcp --sport 4444 -j CT --notrack; "
        "systemctl start nfq-guard"
    )
    try:
        found = "not enforced where `-p tcp -m tcp --sport 4444 -j CT --notrack`"
        guest.until(lambda: found in guest.sh("nfq-guard status"), "the rule is known")
        assert "have changed" not in guest.sh("nfq-guard status")
        guest.sh(f"{raw} -A PREROUTING -p tcp --sport 5555 -j CT --notrack")
        changed = "table raw have changed since the service started"
        guest.until(lambda: changed in guest.sh("nfq-guard status"), "the change is seen")
        guest.sh("systemctl restart nfq-guard")
        guest.until(lambda: "--sport 5555" in guest.sh("nfq-guard status"), "it is read anew")
    finally:
        guest.sh(f"systemctl stop nfq-guard; {raw} -F PREROUTING")


def test_a_rule_of_the_host_leads_to_our_queue(guest: Guest) -> None:
    """As where a firewall of the host's own installs it, with `rules = "none"`."""
    chains = {"PREROUTING": ("ok", "PREROUTING"), "FORWARD": ("warning", "none in PREROUTING")}
    match = "-m conntrack --ctstate INVALID -j NFQUEUE --queue-num 0 --queue-bypass"
    guest.configure('rules = "none"')
    guest.sh("systemctl restart nfq-guard")
    assert rules(guest) == 0, "those of the earlier configuration are removed"
    assert "leaves it to others" in guest.sh("nfq-guard rules verify")
    for chain, (status, says) in chains.items():
        both = f"for program in iptables ip6tables; do $program -t mangle %s {chain} {match}; done"
        guest.sh(both % "-A")
        try:
            lines = guest.sh("nfq-guard doctor --format json", check=False).splitlines()
        finally:
            guest.sh(both % "-D")
        checks = {one["id"]: one for one in map(json.loads, lines) if "id" in one}
        check = checks["rules.ours"]
        assert (check["status"], says in check["what"]) == (status, True), check
    assert rules(guest) == 0, "the daemon does not restore what it does not keep"
    guest.sh("kill -9 $(systemctl show --value -p MainPID nfq-guard)")
    guest.until(lambda: guest.show("ActiveState") == "active", "it is restarted")
    assert rules(guest) == 0
    guest.configure("")
    guest.sh("systemctl restart nfq-guard")
    assert rules(guest) == RULES


def test_rules_stay_over_a_restart(guest: Guest) -> None:
    """In fail modes closed and kernel-drop, packets that the policy drops would pass meanwhile."""
    guest.configure('mode = "enforce"\nfail_mode = "closed"')
    guest.sh("systemctl restart nfq-guard")
    before = guest.sh("iptables -t mangle -S")
    watch = "nft monitor rules >/run/changes & sleep 0.5; systemctl restart nfq-guard; kill $!"
    guest.sh(f"{watch}; wait")
    assert guest.sh("grep -c . /run/changes", check=False).strip() == "0"
    assert guest.sh("iptables -t mangle -S") == before


def test_root_prepares_a_restart_while_the_old_daemon_serves(guest: Guest) -> None:
    """Not where the configuration has changed, which may change rules, and not before a stop."""
    drop_in = "/run/systemd/system/nfq-guard.service.d/seen.conf"
    look = "{ cd /run/nfq-guard && ls -d prepared; cat /proc/$MAINPID/comm; } >/run/seen 2>&1"
    guest.configure('mode = "enforce"\nfail_mode = "closed"')
    guest.sh(
        f"systemctl restart nfq-guard; mkdir -p $(dirname {drop_in}); "
        f"printf '[Service]\nExecStop=+/bin/sh -c \"%s\"\n' '{look}' >{drop_in}; "
        "systemctl daemon-reload"
    )
    before, missing = rules(guest), "ls: cannot access 'prepared': No such file or directory"
    try:
        for change, action, seen in (
            ("true", "restart", "prepared"),
            ("echo >>/etc/nfq-guard/nfq-guard.toml", "restart", missing),
            ("true", "restart", "prepared"),
            ("true", "stop", missing),
        ):
            guest.sh(f"systemctl reset-failed nfq-guard; {change}; systemctl {action} nfq-guard")
            assert guest.sh("cat /run/seen").splitlines() == [seen, "nfq-guard"], (change, action)
            assert "prepared" not in guest.sh("ls -A /run/nfq-guard")
            assert rules(guest) == (0 if action == "stop" else before)
    finally:
        guest.sh(f"rm {drop_in}; systemctl daemon-reload; systemctl start nfq-guard")
    assert evidence(guest) == EVIDENCE
    # systemd takes the sockets with which the daemon reads the tables of iptables-legacy.
    refused = "journalctl -u nfq-guard -o cat | grep 'reception only permitted'"
    assert guest.sh(refused, check=False) == ""


_QUEUED: Final = "/proc/net/netfilter/nfnetlink_queue"


def test_packets_wait_for_the_next_daemon(guest: Guest) -> None:
    """In fail mode closed the queue stays bound over a restart and a kill, not over a stop."""

    def judged(count: int) -> bool:
        status = json.loads(guest.sh("nfq-guard status --format json", check=False))
        return bool(status["queues"][0]["packets"] == count)

    def again(script: str) -> None:
        guest.sh("systemctl reset-failed nfq-guard")
        # Send packets while no daemon runs.
        guest.sh(f"{script}; python3 -c '{_STRAYS}' 30000")
        guest.until(lambda: guest.show("ActiveState") == "active", "ready again")
        guest.until(lambda: judged(5), "the packets are judged")
        assert guest.sh(f"cat {_QUEUED}").split()[1] == owner

    guest.configure('mode = "enforce"\nfail_mode = "closed"', 'default = "log"')
    guest.sh("systemctl restart nfq-guard")
    owner = guest.sh(f"cat {_QUEUED}").split()[1]
    kept = int(guest.show("NFileDescriptorStore"))
    again("systemctl restart --no-block nfq-guard; while pgrep -u nfq-guard >/dev/null; do :; done")
    again("kill -9 $(systemctl show --value -p MainPID nfq-guard)")
    assert int(guest.show("NFileDescriptorStore")) == kept
    # No packet went by.
    assert "unserved_time" not in {
        one["NFQ_EVENT"] for one in journal(guest, guest.show("MainPID"))
    }
    guest.sh("systemctl stop nfq-guard")
    assert guest.sh(f"cat {_QUEUED}") == ""
    guest.sh("systemctl start nfq-guard")
    # In fail mode open the queue is not kept.
    guest.configure('mode = "enforce"\nfail_mode = "open"', 'default = "log"')
    guest.sh("systemctl restart nfq-guard")
    guest.until(lambda: int(guest.show("NFileDescriptorStore")) == kept - 1, "the queue is let go")
    guest.configure('mode = "enforce"\nfail_mode = "closed"\nqueue = 5', 'default = "log"')
    guest.sh("systemctl restart nfq-guard")
    guest.until(lambda: int(guest.show("NFileDescriptorStore")) == kept, "the queue is kept")
    guest.configure('mode = "enforce"\nfail_mode = "closed"\nqueue = 6', 'default = "log"')
    guest.sh("systemctl restart nfq-guard")
    guest.until(lambda: guest.sh(f"cat {_QUEUED}").split()[::9] == ["6"], "the old one is let go")
    assert int(guest.show("NFileDescriptorStore")) == kept
    # The rules to the old queue, which systemd has kept, are replaced before the daemon starts.
    command = f"journalctl -o cat _SYSTEMD_INVOCATION_ID={guest.show('InvocationID')}"
    assert "queue=6" in (said := guest.sh(command))
    assert "rules" not in said
    # systemd has the socket too, and the daemon is its owner.
    lines = guest.sh("nfq-guard doctor --format json", check=False).splitlines()
    checks = [json.loads(line) for line in lines]
    found = [check["status"] for check in checks if check["id"] == "queue.owner"]
    assert found == ["ok"]


def test_stop_leaves_nothing_behind(guest: Guest) -> None:
    """No rule, no pin, no process and no socket."""
    guest.sh("systemctl stop nfq-guard")
    assert rules(guest) == 0
    assert guest.show("Result") == "success"
    assert guest.sh(f"ls -d {PINS} 2>/dev/null", check=False) == ""
    assert guest.sh("pgrep -cu nfq-guard", check=False).strip() == "0"
    assert guest.sh("find /run/nfq-guard ! -type d") == ""
    assert guest.sh("nft list tables | grep nfq", check=False) == ""


@pytest.mark.parametrize("fail_mode", ["open", "closed"])
def test_a_stop_leaves_nothing_of_a_daemon_that_is_killed_meanwhile(
    guest: Guest, fail_mode: str
) -> None:
    """As by an administrator for whom the stop takes too long, here because the daemon hangs."""
    guest.configure(f'mode = "enforce"\nfail_mode = "{fail_mode}"')
    guest.sh("systemctl restart nfq-guard")
    pid = guest.show("MainPID")
    guest.sh(f"kill -STOP {pid}; systemctl stop --no-block nfq-guard; kill -9 {pid}")
    ended = {"inactive", "failed"}
    guest.until(lambda: guest.show("ActiveState") in ended, "the service is stopped")
    assert rules(guest) == 0
    assert not pins(guest)
    assert "killed" not in guest.sh("ls -A /run/nfq-guard")


@pytest.mark.parametrize("fail_mode", ["open", "closed"])
def test_a_stop_before_an_automatic_restart_leaves_nothing(guest: Guest, fail_mode: str) -> None:
    """The unit's own steps do not run for such a stop."""
    guest.configure(f'mode = "enforce"\nfail_mode = "{fail_mode}"')
    with overridden(guest, r"[Service]\nRestartSec=30"):
        guest.sh(f"kill -9 {guest.show('MainPID')}")
        guest.until(lambda: guest.show("SubState") == "auto-restart", "systemd waits")
        assert rules(guest) == RULES
        guest.sh("systemctl stop nfq-guard")
        guest.until(lambda: rules(guest) == 0, "the rules are gone")
        guest.until(lambda: not pins(guest), "the pins are gone")
        assert "killed" not in guest.sh("ls -A /run/nfq-guard")
        # A start right after it waits for the removal, or forestalls it.
        for pause in ("0", "0.1", "0.2", "0.3"):
            guest.sh(f"systemctl start nfq-guard && kill -9 {MAIN}")
            guest.until(lambda: guest.show("SubState") == "auto-restart", "systemd waits")
            guest.sh(f"systemctl stop nfq-guard; sleep {pause}; systemctl start nfq-guard")
            assert rules(guest) == RULES
            guest.sh("systemctl stop nfq-guard")


def test_as_installed_it_saves_a_connection(guest: Guest) -> None:
    """The guard is an instance in the namespace of the lab's node."""
    tree = Path(__file__).parent.parent.parent
    path = os.environ.get("PYTHONPATH", "")
    words = f"PYTHONPATH={path} {sys.executable} -m tests.systemd.saved kube-proxy-dnat"
    said = guest.sh(f"cd {tree} && {words}")
    found = json.loads(said.splitlines()[-1])
    assert found == {"outcome": "survived", "dropped": 1, "evidence": evidence(guest)}


@pytest.mark.parametrize("fail_mode", ["open", "closed", "kernel-drop"])
def test_rules_after_a_kill(guest: Guest, fail_mode: str) -> None:
    """They stay: in fail mode open they let all packets pass, and a restart follows at once."""
    guest.configure(f'mode = "enforce"\nfail_mode = "{fail_mode}"')
    with overridden(guest, r"[Service]\nRestart=no"):
        guest.sh(f"kill -9 {guest.show('MainPID')}")
        guest.until(lambda: guest.show("ActiveState") == "failed", "the unit failed")
        assert rules(guest) == RULES
        assert pins(guest) or EVIDENCE != "bpf"


def test_rules_stay_once_systemd_gave_up(guest: Guest) -> None:
    """They drop what nobody judges; no administrator has stopped the service."""
    guest.configure('mode = "enforce"\nfail_mode = "closed"')
    with overridden(guest, r"[Unit]\nStartLimitBurst=1"):
        guest.sh(f"kill -9 {guest.show('MainPID')}")
        guest.until(lambda: guest.show("SubState") == "failed", "systemd gave up")
        guest.until(lambda: "Restart of" not in guest.sh("systemctl list-units"), "nothing waits")
        assert rules(guest) == RULES


def test_wrong_configuration_is_not_tried_again(guest: Guest) -> None:
    """There is no last good configuration to start with."""
    guest.configure("mode = 7")
    guest.sh("systemctl stop nfq-guard; rm /var/lib/nfq-guard/last-good.json")
    guest.sh("systemctl start nfq-guard", check=False)
    guest.until(lambda: guest.show("ActiveState") == "failed", "the unit failed")
    assert guest.show("NRestarts") == "0"
    assert "daemon.mode" in guest.sh("journalctl -u nfq-guard --no-pager -n 20")
    assert rules(guest) == 0


def test_rules_that_are_impossible_here_are_not_tried_again(guest: Guest) -> None:
    """A kernel without the statement `queue`, or nft that the daemon does not find."""
    drop_in = "/run/systemd/system/nfq-guard.service.d"
    guest.configure('backend = "nftables"')
    guest.sh(
        f"systemctl stop nfq-guard; mkdir -p {drop_in}; systemctl reset-failed nfq-guard; "
        f"printf '[Service]\nInaccessiblePaths=/usr/sbin/nft\n' >{drop_in}/test.conf; "
        "systemctl daemon-reload"
    )
    try:
        guest.sh("systemctl start nfq-guard", check=False)
        guest.until(lambda: guest.show("ActiveState") == "failed", "the unit failed")
        assert guest.show("ExecMainStatus") == "69"
        assert guest.show("NRestarts") == "0"
        assert "CONFIG_NFT_QUEUE" in guest.sh("journalctl -u nfq-guard --no-pager -n 20")
    finally:
        guest.sh(
            f"rm {drop_in}/test.conf; systemctl daemon-reload; systemctl reset-failed nfq-guard"
        )


def test_the_group_cannot_delay_a_start(guest: Guest) -> None:
    """Whoever can open the directory of the control socket could hold its lock."""
    directories = guest.sh("stat -c '%A %U %G' /{run,var/lib,var/log}/nfq-guard")
    assert directories.splitlines() == [f"{mode} nfq-guard nfq-guard" for mode in MODES]
    member = "setpriv --reuid nobody --regid nfq-guard --clear-groups"
    guest.sh(f"{member} nfq-guard status")
    assert "Permission denied" in guest.sh(f"{member} flock -n /run/nfq-guard true", check=False)


def test_an_instance_serves_a_namespace(guest: Guest) -> None:
    guest.sh(
        "ip netns add blue; "
        "printf '[daemon]\ncontrol_socket = \"/run/nfq-guard/blue/control.sock\"\n' "
        ">/etc/nfq-guard/blue.toml"
    )
    try:
        guest.sh("systemctl start nfq-guard@blue")
        queues = guest.sh("ip netns exec blue cat /proc/net/netfilter/nfnetlink_queue")
        assert queues.split()[0] == "0"
        assert "NFQUEUE" in guest.sh("ip netns exec blue iptables-save -t mangle")
        assert evidence(guest, "/run/nfq-guard/blue/control.sock") == EVIDENCE
        directories = guest.sh("stat -c '%A %U %G' /{run,var/lib,var/log}/nfq-guard/blue")
        assert directories.splitlines() == [f"{mode} nfq-guard nfq-guard" for mode in MODES]
        pinned = pins(guest)
        assert pins(guest, "blue") == pinned
        assert bool(pinned) == (EVIDENCE == "bpf")
        guest.sh("systemctl reload nfq-guard@blue")
        guest.sh("systemctl stop nfq-guard")
        guest.sh("nfq-guard status --socket /run/nfq-guard/blue/control.sock")
        guest.sh("systemctl start nfq-guard; systemctl stop nfq-guard@blue")
        guest.sh("nfq-guard status")
        assert pins(guest, "blue") == []
        assert pins(guest) == pinned
        assert "NFQUEUE" not in guest.sh("ip netns exec blue iptables-save -t mangle")
    finally:
        guest.sh("systemctl stop nfq-guard@blue; ip netns del blue; rm /etc/nfq-guard/blue.toml")


# Sends five RSTs without a flow, which conntrack calls INVALID, from consecutive ports.
_STRAYS: Final = """
import socket, struct, sys
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for port in range(int(sys.argv[1]), int(sys.argv[1]) + 5):
    rst = struct.pack(">HHIIBBHHH", port, 443, 1, 0, 0x50, 0x04, 0, 0, 0)
    out.sendto(rst, ("127.0.0.1", 0))
"""
_EVENTS: Final = "/var/log/nfq-guard/events.jsonl"


@pytest.mark.parametrize("queues", ["", r'\nqueues = "0-1"'], ids=["one", "two"])
def test_the_first_day_as_installed(guest: Guest, queues: str) -> None:
    """With the shipped configuration, packets are logged to a file, all else to the journal."""
    logrotate = "logrotate -f /etc/logrotate.d/nfq-guard"
    shipped = Path(__file__).parent.parent.parent / "systemd" / "nfq-guard.toml"
    guest.sh(
        f"systemctl stop nfq-guard; rm -f {_EVENTS}*; "
        f"sed 's/^.daemon.$/&{queues}/' {shipped} >/etc/nfq-guard/nfq-guard.toml; "
        "systemctl start nfq-guard"
    )
    pid = guest.show("MainPID")

    def packets(file: str) -> int:
        return int(guest.sh(f"grep -c packet_judged {file}", check=False))

    def strays(port: int) -> None:
        guest.sh(f"python3 -c '{_STRAYS}' {port}")
        guest.until(lambda: packets(_EVENTS) >= 5, "events in the file")

    strays(40_000)
    assert guest.sh(f"stat -c '%U %a' {_EVENTS}").split() == ["nfq-guard", "640"]
    told = {one["NFQ_EVENT"] for one in journal(guest, pid)}
    assert "started" in told
    assert "packet_judged" not in told
    guest.sh(logrotate)
    rotated = f"readlink $(printf '/proc/%s/fd/* ' $(pgrep -u nfq-guard)) | grep -c {_EVENTS}.1"
    guest.until(
        lambda: guest.sh(rotated, check=False).strip() == "0", "nobody has the rotated file open"
    )
    strays(50_000)
    guest.sh(logrotate)
    for file in (f"{_EVENTS}.1", f"{_EVENTS}.2.gz"):
        said = guest.sh(f"nfq-guard whatif {file} --policy preset:default; test $? -lt 2")
        found = re.search(r"(\d+) INVALID packets", said)
        assert found is not None, said
        assert int(found[1]) >= 5
        guest.sh(f"nfq-guard report {file} -o /tmp/report.html && test -s /tmp/report.html")


def test_by_hand_beside_the_service(guest: Guest) -> None:
    """The directory of the locks belongs to the user of the service, and root is another."""
    guest.sh("ip netns add hand; printf '[daemon]\ncontrol_socket = \"\"\n' >/run/hand.toml")
    try:
        said = guest.sh(
            "ip netns exec hand nfq-guard run --config /run/hand.toml >/run/hand.log 2>&1 & "
            "while kill -0 $! && ! grep -q started /run/hand.log; do sleep 0.1; done; "
            "kill $!; wait $!; status=$?; cat /run/hand.log; exit $status"
        )
    finally:
        guest.sh("ip netns del hand; rm /run/hand.toml /run/hand.log")
    assert "keeps CAP_DAC_OVERRIDE, because /run/nfq-guard is not open to its user" in said
    assert '"capabilities":["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_NET_ADMIN","CAP_NET_RAW"]' in said
    assert '"stopped"' in said


# Packets of one flow without an entry; the sender is told of those that are offloaded.
_REPEATS: Final = """
import contextlib, socket, struct, sys
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
rst = struct.pack(">HHIIBBHHH", 30000, 443, 1, 0, 0x50, 0x04, 0, 0, 0)
for _ in range(int(sys.argv[1])):
    with contextlib.suppress(PermissionError):
        out.sendto(rst, ("127.0.0.1", 0))
"""


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_the_kernel_drops_a_flood_of_repeats(guest: Guest, backend: str) -> None:
    """The daemon fills the set of the offload, with the privileges of the unit in its sandbox."""
    guest.configure(
        f'mode = "enforce"\nbackend = "{backend}"\noffload = true\noffload_after = 10\n'
        "offload_timeout_s = 600",
        'default = "drop"\non_unknown = "drop"\ni_know = "drops everything"',
    )
    guest.sh("systemctl restart nfq-guard")
    pid = guest.show("MainPID")

    def offloaded() -> bool:
        (queue,) = json.loads(guest.sh("nfq-guard status --format json"))["queues"]
        return bool(queue["offload_entries"] == 1)

    guest.sh(f"python3 -c '{_REPEATS}' 20")
    guest.until(offloaded, "the flow is offloaded")
    guest.sh(f"python3 -c '{_REPEATS}' 400; systemctl stop nfq-guard")
    stopped = event(guest, pid, "stopped")
    dropped_by_kernel = int(stopped["NFQ_OFFLOAD_DROPS"])
    assert int(stopped["NFQ_PACKETS"]) + dropped_by_kernel == 420
    assert dropped_by_kernel >= 400
