# SPDX-License-Identifier: MIT
"""`doctor --plan`: each plan is executed on a host with the rules that it is for."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.cli.doctor import plan_text
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.doctor import iptables_rules, nft_rules
from nfq_guard.doctor.plan import Guard, Plan, plan
from nfq_guard.doctor.rule_model import Table
from nfq_guard.firewall import Backend, Family, native
from nfq_guard.firewall.saved import parse
from tests.support.live import LiveConntrack
from tests.support.queue import GuardProcess, wait_for
from tests.support.segments import ACK, SYN, checksum, tcp_ipv4

CLIENT, SERVER = ("10.0.0.1", "10.0.1.1", 40000, 80), ("10.0.1.1", "10.0.0.1", 80, 40000)
INVALID, ESTABLISHED = CTSTATES.index("INVALID"), CTSTATES.index("ESTABLISHED")
NFT_DROP = (
    "table inet fw {{ chain input {{ type filter hook input priority 0; }}\n"
    "chain through {{ type filter hook forward priority {}; tcp dport 9 accept\n"
    'ct state invalid log prefix "gone: " drop\nct state established accept\n}}\n}}\n'
)
LIBERAL = "netfilter.nf_conntrack_tcp_be_liberal"
UNIT = Guard(Path("/etc/nfq-guard/nfq-guard.toml"), "", "nfq-guard", '[daemon]\nmode = "dry-run"\n')


def tables(rules: str, backend: Backend = Backend.NFT) -> list[Table]:
    return iptables_rules.tables(parse(rules), backend, Family.IPV4)


def planned(
    rules: Sequence[Table],
    sysctls: dict[str, str] | None = None,
    files: dict[str, str] | None = None,
    guard: Guard = UNIT,
) -> Plan:
    return plan(rules, sysctls or {}, files or {}, guard)


def commands(steps: Sequence[Any]) -> list[str]:
    return [command for step in steps for command in step.commands]


def commands_in(steps: Sequence[dict[str, Any]]) -> list[str]:
    return [command for step in steps for command in step["commands"]]


FORWARD = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
RULE = "-m conntrack --ctstate INVALID -j DROP"


def test_without_any_handling_the_guard_is_started_and_enforces() -> None:
    made = planned([])
    assert made.found == ["nothing: no rule singles out INVALID packets, and windows are checked"]
    file = "/etc/nfq-guard/nfq-guard.toml"
    assert commands(made.over) == [
        f"sed -i 's/^mode *=.*/mode = \"enforce\"/' {file}",
        "systemctl reload nfq-guard",
    ]
    assert commands(made.back) == [
        "systemctl disable --now nfq-guard",
        f"sed -i 's/^mode *=.*/mode = \"dry-run\"/' {file}",
    ]


def test_a_guard_that_enforces_is_not_started() -> None:
    running = UNIT._replace(mode="enforce", running="enforce", policy="preset:default")
    made = planned([], guard=running)
    assert made.found[0] == "the guard enforces its policy, preset:default"
    assert made.found[1].startswith("no other rule singles out")
    assert commands([*made.beside, *made.over]) == []


def test_a_mode_of_the_control_socket_is_written_into_the_file() -> None:
    """It lasts until the next start of the daemon."""
    made = planned([], guard=UNIT._replace(running="enforce", policy="preset:default"))
    assert commands(made.over) == commands(planned([]).over)


@pytest.mark.parametrize("text", ["", "[daemon]\nqueue = 1\n", '[daemon]\nmode = "dry-run"\n'])
def test_the_mode_gets_into_any_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "nfq guard.toml"
    file.write_text(text)
    made = planned([], guard=Guard(file, "", "nfq-guard", text))
    for mode, steps in (("dry-run", made.beside), ("enforce", made.over), ("dry-run", made.back)):
        for command in commands(steps):
            if "systemctl" not in command and not command.startswith("nfq-guard"):
                subprocess.run(["sh", "-ec", command], check=True)
        assert re.findall("(?m)^mode = .*$", file.read_text()) == [f'mode = "{mode}"']
        assert file.read_text().count("[daemon]") == 1


def test_a_rule_of_a_program_is_changed_by_its_switch() -> None:
    rules = (
        f"*filter\n:FORWARD ACCEPT [0:0]\n:ufw-x - [0:0]\n-A FORWARD -j ufw-x\n-A ufw-x {RULE}\n"
    )
    made = planned(tables(rules))
    assert made.found[0].startswith("a rule of ufw in nft table filter, chain ufw-x, IPv4: ")
    assert "before.rules" in made.over[-1].what
    assert not any("iptables" in command for command in commands(made.over))
    assert "set ufw as it was before" in [step.what for step in made.back]


@pytest.mark.parametrize(
    ("chain", "owner"), [("KUBE-FORWARD", "kube-proxy"), ("libvirt-in", "libvirt")]
)
def test_a_rule_to_keep_is_not_set_back(chain: str, owner: str) -> None:
    """Nothing of it was changed."""
    rules = (
        f"*filter\n:FORWARD ACCEPT [0:0]\n:{chain} - [0:0]\n-A FORWARD -j {chain}\n"
        f"-A {chain} {RULE}\n"
    )
    made = planned(tables(rules))
    assert made.found[0].startswith(f"a rule of {owner} in ")
    assert "keep it" in made.over[-1].what
    assert not any(owner in step.what for step in made.back)


def test_a_rule_before_a_default_deny_stays_until_packets_are_accepted() -> None:
    """Removing it alone would change nothing."""
    rules = f"*filter\n:FORWARD DROP [0:0]\n-A FORWARD {RULE}\n"
    made = planned(tables(rules))
    assert "`policy drop` behind it drops all others" in made.over[-1].what
    assert not any("iptables" in command for command in commands([*made.over, *made.back]))
    made = planned(tables(rules.replace("FORWARD DROP", "FORWARD ACCEPT")))
    assert any("iptables" in command for command in commands(made.over))


def test_a_rule_of_a_program_before_the_guard_hides_its_packets() -> None:
    rules = (
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:ISTIO_X - [0:0]\n-A PREROUTING -j ISTIO_X\n"
        f"-A ISTIO_X {RULE}\n"
    )
    assert "the guard sees no packet" in planned(tables(rules)).beside[0].what


def test_a_native_chain_before_the_guard_is_words() -> None:
    listed = {"family": "inet", "table": "fw"}
    state = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}
    rule = {**listed, "chain": "pre", "handle": 3, "expr": [state, {"drop": None}]}
    chain = {**listed, "name": "pre", "hook": "prerouting", "prio": -190, "type": "filter"}
    text = json.dumps({"nftables": [{"chain": chain}, {"rule": rule}]})
    made = planned([each for each in nft_rules.Ruleset(text).tables() if each.family == 4])
    assert f"priority above {native.PRIORITY}" in made.beside[0].what
    assert not any("nft" in command.split() for command in commands(made.over))


def test_files_that_restore_the_handling_at_boot_are_named() -> None:
    files = {
        "/etc/iptables/rules.v4": f"-A FORWARD {RULE}",
        "/etc/sysctl.d/x.conf": "net/netfilter/nf_conntrack_tcp_be_liberal = 1",
        "/etc/sysctl.conf": "# net.netfilter.nf_conntrack_tcp_be_liberal = 1",
    }
    made = planned(tables(f"{FORWARD}-A FORWARD {RULE}\n"), {LIBERAL: "1"}, files)
    assert any("/etc/iptables/rules.v4 restores rules" in step.what for step in made.over)
    changed = [command for command in commands(made.over) if "sysctl" in command]
    assert len(changed) == 2
    assert changed[1].endswith(" /etc/sysctl.d/x.conf")


def test_the_sysctl_is_changed_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "x.conf"
    file.write_text(f"kernel.x = 1\nnet.{LIBERAL} = 1\n")
    made = planned([], {LIBERAL: "1"}, {str(file): file.read_text()})
    for steps, value in ((made.over, 0), (made.back, 1), (made.over, 0)):
        (command,) = (each for each in commands(steps) if str(file) in each)
        subprocess.run(["sh", "-ec", command], check=True)
        assert file.read_text() == f"kernel.x = 1\nnet.{LIBERAL} = {value}\n"


def test_a_comment_in_a_rule_is_quoted() -> None:
    rule = '-m comment --comment "$(id) `id`" -m conntrack --ctstate INVALID -j DROP'
    made = planned(tables(f"{FORWARD}-A FORWARD {rule}\n"))
    assert "'$(id) `id`'" in commands(made.over)[-1]


def test_the_text_is_a_script_with_comments() -> None:
    text = plan_text(planned(tables(f"{FORWARD}-A FORWARD {RULE}\n")))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    script = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert f"iptables-nft -w -t filter -D FORWARD {RULE}" in script


def packet(src: str, dst: str, sport: int, dport: int, seq: int, ack: int, flags: int) -> bytes:
    """A segment whose header is summed, as that of a packet that comes in must be."""
    octets = tcp_ipv4(src, dst, sport, dport, seq, ack, flags, b"")
    return octets[:10] + checksum(octets[:20]).to_bytes(2, "big") + octets[12:]


class Site:
    """A router with its own conntrack, and the guard when a plan starts it."""

    def __init__(self, live: LiveConntrack, folder: Path) -> None:
        self.live = live
        self.config = folder / "nfq-guard.toml"
        self.config.write_text(
            f'[daemon]\ncontrol_socket = "{folder}/control"\nqueue = 11\nlog_interval_s = 0\n'
            '[policy]\ninclude = "preset:strict"\ni_know = "drops everything"\n'
        )
        self.log = folder / "log"
        self.guard: GuardProcess | None = None
        program = folder / "nfq-guard"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nfq_guard "$@"\n')
        program.chmod(0o755)

    def plan(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(
            self.run(f"nfq-guard doctor --plan --config {self.config} --format json")
        )
        return made

    def run(self, command: str) -> str:
        """A command as root would type it, in the namespace."""
        search = f"{self.config.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        environment = {**os.environ, "PATH": search, "PYTHONPATH": str(Path.cwd())}
        environment["HOME"] = str(self.config.parent)
        done = subprocess.run(
            self.live.space.argv(["sh", "-ec", command]),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def follow(self, steps: Sequence[dict[str, Any]]) -> None:
        for step in steps:
            for command in step["commands"]:
                if step["stays"]:
                    assert command.startswith("nfq-guard run ")
                    words = command.split()[2:]
                    self.guard = GuardProcess(self.live.space, self.log, *words).ready()
                else:
                    self.run(command)
            if "Ctrl-C" in step["what"]:
                assert self.guard is not None
                assert self.guard.stop() == 0
                self.guard.__exit__()

    def stray(self, judged: int = 0) -> int | None:
        """The ctstate of a segment far beyond the window; None if it was dropped.

        Args:
            judged: Packets that the guard has judged in all, with this one.
        """
        self.live.put(packet(*CLIENT, 1 << 30, 2, ACK))
        if judged:
            wait_for(lambda: self.judged() == judged)
        return self.live.came_out()

    def judged(self) -> int:
        assert self.guard is not None
        return len(self.guard.events("packet_judged"))

    def state(self) -> str:
        """All rules in their order, and the sysctl; tables without a rule may come and stay."""
        saves = "; ".join(
            f"{program}-{backend}-save"
            for program in ("iptables", "ip6tables")
            for backend in Backend
        )
        rules = re.findall("(?m)^-A .*$", self.run(saves))
        native = self.run("nft list table inet fw 2>/dev/null || true")
        return "\n".join([*rules, native, self.run(f"sysctl net.{LIBERAL}")])


HANDLINGS = {
    "nothing": "true",
    "legacy rule after the guard": f"iptables-legacy -A FORWARD -p tcp {RULE}",
    "nft rule after the guard": f"iptables-nft -A FORWARD {RULE}",
    "rule before the guard": f"iptables -t mangle -I PREROUTING 3 {RULE}",
    "native": f"nft -f - <<'END'\n{NFT_DROP.format(0)}END",
    "be_liberal": f"sysctl -qw net.{LIBERAL}=1",
}


@pytest.mark.kernel
@pytest.mark.parametrize("handling", HANDLINGS)
def test_each_plan_leads_to_the_guard_and_back(tmp_path: Path, handling: str) -> None:
    with LiveConntrack(Sysctls(), reads_log=False) as live:
        site = Site(live, tmp_path)
        site.run(HANDLINGS[handling])
        for octets in (
            packet(*CLIENT, 1, 0, SYN),
            packet(*SERVER, 1, 2, SYN | ACK),
            packet(*CLIENT, 2, 2, ACK),
        ):
            live.send(octets)
        before, fate = site.state(), site.stray()
        assert fate == {"nothing": INVALID, "be_liberal": ESTABLISHED}.get(handling)
        made = site.plan()

        site.follow(made["beside"])
        before_over = 0 if handling == "be_liberal" else 1
        assert site.stray(judged=before_over) == fate
        again = site.plan()
        assert not any(step["stays"] for step in again["beside"])
        assert "runs in dry-run already" in again["beside"][0]["what"]
        assert not any("enforces" in found for found in again["found"])

        site.follow(made["over"])
        assert site.stray(judged=before_over + 1) is None
        assert RULE not in site.state().replace("-j NFQ_GUARD", "")
        assert not re.search("ct state invalid .*drop", site.state())
        assert site.run(f"sysctl -n net.{LIBERAL}") == "0\n"
        again = site.plan()
        assert again["found"] == [
            f"the guard enforces its policy, {site.config}",
            "no other rule singles out INVALID packets, and windows are checked",
        ]
        assert not commands_in([*again["beside"], *again["over"]])

        site.follow(made["back"])
        assert site.state() == before
        assert site.stray() == fate
        site.follow([step for step in made["back"] if "Ctrl-C" not in step["what"]])
        assert site.state() == before
