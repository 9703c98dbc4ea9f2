# SPDX-License-Identifier: MIT
"""The selection and times of offloaded flows, with a simulated clock."""

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_guard.engine import VERDICT_DROP, Engine, Judgment, Mode
from nfq_guard.finding import Finding, Reason
from nfq_guard.firewall.offload_sets import OneWay
from nfq_guard.flow import IPV4, PROTO_TCP, PROTO_UDP, Evidence, FlowSnapshot, FlowTuple, Hook
from nfq_guard.flows.open import NoFlows
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.raw_rules import UNTRACKED, RawAct, RawRule, RawRules
from nfq_guard.seqno import seq
from nfq_guard.service.worker import offload
from nfq_guard.service.worker.offload import Offloader
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import ACK, Datagram, Packet, Queued, Segment

AFTER = 5
TIMEOUT_S = 10.0
MOST = 3


class FakeSets:
    """Sets that keep the given flows; raises `error`, an errno, unless that is 0."""

    def __init__(self) -> None:
        self.held: list[tuple[OneWay, float]] = []
        self.cleared = 0
        self.dropped = 0
        self.error = 0

    def add(self, flows: Sequence[tuple[OneWay, float]]) -> None:
        self._refuse()
        self.held += flows

    def clear(self) -> None:
        self._refuse()
        self.cleared += 1
        self.held.clear()

    def take_dropped(self) -> int:
        self._refuse()
        taken, self.dropped = self.dropped, 0
        return taken

    def close(self) -> None:
        return

    def _refuse(self) -> None:
        if self.error:
            raise OSError(self.error, "refused")


class Bench:
    """An `Offloader` and fakes of what it uses."""

    def __init__(self, log: Path) -> None:
        self.sets = FakeSets()
        self.stats = Stats()
        self.sink = LineSink(log)
        self.log = log
        self.engine = Engine(policy=policy(), flows=NoFlows(), mode=Mode.ENFORCE)
        self.offloader = Offloader(
            self.sets,
            self.engine,
            self.stats,
            EventLog(self.sink),
            after=AFTER,
            timeout_s=TIMEOUT_S,
            most=MOST,
        )

    def offloaded(self) -> list[int]:
        """Source ports of the offloaded flows."""
        return [flow.sport for flow, _ in self.sets.held]

    def logged(self) -> str:
        self.sink.push(0.0)
        return self.log.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "log")


def policy(action: str = "drop") -> Policy:
    table = {"default": action, "on_unknown": action, "i_know": "drops everything"}
    return compile_policy(parse_policy(table, source="test"))


def dropped(
    sport: int = 1,
    *,
    hook: Hook = Hook.PREROUTING,
    action: Action = Action.DROP,
    verdict: int = VERDICT_DROP,
    lives_s: int | None = None,
    udp: bool = False,
) -> Judgment:
    """One packet of 10.0.0.1 port `sport`."""
    one, other = b"\n\0\0\1", b"\n\0\0\2"
    l4: Segment | Datagram = Segment(sport, 2, seq(1), seq(2), ACK, 100, 10, b"", 0)
    if udp:
        l4 = Datagram(sport, 2, 8, 0)
    packet = Packet(4, one, other, PROTO_TCP, 60, 20, 64, 0, False, l4)
    flow = FlowTuple(PROTO_TCP, one, other, sport, 2)
    snapshot = None
    if lives_s is not None:
        snapshot = FlowSnapshot(Evidence.BPF, 0, flow, flow, 0, 0, 0, lives_s, 3, None)
    received = hook is Hook.PREROUTING
    queued = Queued(b"", hook, "eth0" if received else "", "" if received else "eth1", 0, 0)
    return Judgment(
        queued, packet, snapshot, Finding(Reason.SEQ_OVER), Decision(action, "all"), verdict
    )


def test_a_flow_is_offloaded_after_enough_drops_within_a_second(bench: Bench) -> None:
    for number in range(AFTER - 1):
        bench.offloader.process_batch([dropped()], 100 + number / 10)
    assert bench.offloaded() == []
    bench.offloader.process_batch([dropped()] * (AFTER - 1), 101.0)
    assert bench.offloaded() == []
    bench.offloader.process_batch([dropped()], 101.9)
    assert bench.sets.held == [
        (OneWay(Hook.PREROUTING, "eth0", b"\n\0\0\1", b"\n\0\0\2", 1, 2), TIMEOUT_S)
    ]


def test_each_hook_and_interface_counts_separately(bench: Bench) -> None:
    bench.offloader.process_batch([dropped(), dropped(hook=Hook.OUTPUT)] * AFTER, 100.0)
    assert [flow.interface for flow, _ in bench.sets.held] == ["eth0", "eth1"]


@pytest.mark.parametrize(
    "judgment",
    [
        dropped(hook=Hook.FORWARD),
        dropped(action=Action.LOG),
        dropped(verdict=1),
        dropped(udp=True),
        dropped(lives_s=0),
    ],
)
def test_packets_that_are_never_offloaded(bench: Bench, judgment: Judgment) -> None:
    bench.offloader.process_batch([judgment] * 100, 100.0)
    assert bench.offloaded() == []


def test_an_offload_ends_with_the_conntrack_entry(bench: Bench) -> None:
    bench.offloader.process_batch([dropped(1, lives_s=3)] * AFTER, 100.0)
    bench.offloader.process_batch([dropped(2, lives_s=432_000)] * AFTER, 100.0)
    assert [seconds for _, seconds in bench.sets.held] == [3, TIMEOUT_S]


def test_packets_already_queued_do_not_count_again(bench: Bench) -> None:
    bench.offloader.process_batch([dropped()] * AFTER * 10, 100.0)
    bench.offloader.process_batch([dropped()] * AFTER * 10, 100.1)
    assert bench.offloaded() == [1]


def test_one_packet_suffices_for_a_while_after_the_timeout(bench: Bench) -> None:
    bench.offloader.process_batch([dropped()] * AFTER, 100.0)
    bench.offloader.process_batch([dropped()], 110.0)
    assert bench.offloaded() == [1, 1]
    bench.offloader.tick(121.0)
    bench.offloader.process_batch([dropped()], 129.0)
    assert bench.offloaded() == [1, 1, 1]
    bench.offloader.tick(140.0)
    bench.offloader.tick(150.0)
    bench.offloader.process_batch([dropped()], 151.0)
    assert bench.offloaded() == [1, 1, 1]


def test_the_limit_holds_until_an_offload_ends(bench: Bench) -> None:
    for sport in range(MOST + 2):
        bench.offloader.process_batch([dropped(sport)] * AFTER * 3, 100.0)
    assert bench.offloaded() == [0, 1, 2]
    assert bench.stats.counters["offload_full"] == 2
    bench.offloader.tick(110.5)
    bench.offloader.process_batch([dropped(7)] * AFTER, 111.0)
    assert bench.offloaded() == [0, 1, 2, 7]


def test_a_full_kernel_set_is_counted(bench: Bench) -> None:
    bench.offloader.process_batch([], 100.0)
    bench.sets.error = errno.ENFILE
    bench.offloader.process_batch([dropped()] * AFTER, 100.0)
    assert bench.stats.counters["offload_full"] == 1
    assert bench.stats.counters["offloaded_flows"] == 0


def test_forged_addresses_fill_only_the_bounded_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "_COUNTED_MAX", 8)  # 65,536 takes seconds
    for sport in range(8):
        bench.offloader.process_batch([dropped(sport)], 100.0)
    bench.offloader.process_batch([dropped(99)] * AFTER * 2, 100.5)
    assert bench.offloaded() == []
    bench.offloader.process_batch([dropped(99)] * AFTER, 101.0)
    assert bench.offloaded() == [99]


def test_a_change_of_mode_or_policy_takes_everything_back(bench: Bench) -> None:
    bench.offloader.process_batch([dropped()] * AFTER, 100.0)
    bench.engine.mode = Mode.DRY_RUN
    bench.offloader.tick(100.1)
    assert bench.offloaded() == []
    bench.offloader.process_batch([dropped()] * AFTER, 100.2)
    assert bench.offloaded() == []
    bench.engine.mode = Mode.ENFORCE
    bench.offloader.process_batch([dropped()] * AFTER, 100.3)
    assert bench.offloaded() == [1]
    bench.engine.policy = policy("allow")
    bench.offloader.process_batch([dropped()] * AFTER, 100.4)
    assert bench.offloaded() == []
    assert bench.stats.counters["offload_refused"] == 1


HIDES_REPLIES = RawRule(
    "hides", IPV4, PROTO_TCP, Hook.PREROUTING, "raw", RawAct.TRACKING, UNTRACKED
)


@pytest.mark.parametrize("rule", [HIDES_REPLIES, replace(HIDES_REPLIES, opening=True)])
def test_a_flow_with_a_hidden_half_is_not_offloaded(bench: Bench, rule: RawRule) -> None:
    """Its packets with contradicting flags are dropped, but others of the same flow pass."""
    bench.engine.raw_rules = RawRules([rule])
    judgment = dropped()
    judgment.finding = Finding(Reason.BAD_FLAGS)
    bench.offloader.process_batch([judgment] * AFTER, 100.0)
    assert bench.offloaded() == []
    assert bench.stats.counters["offload_refused"] == 1


def test_other_rules_before_conntrack_take_everything_back(bench: Bench) -> None:
    bench.offloader.process_batch([dropped()] * AFTER, 100.0)
    bench.engine.raw_rules = RawRules([HIDES_REPLIES])
    bench.offloader.tick(100.1)
    assert bench.offloaded() == []
    bench.engine.raw_rules = RawRules([replace(HIDES_REPLIES, proto=PROTO_UDP)])
    bench.offloader.process_batch([dropped()] * AFTER, 100.2)
    assert bench.offloaded() == [1]


def test_flows_of_a_killed_daemon_are_removed_first(bench: Bench) -> None:
    bench.offloader.tick(100.0)
    bench.offloader.tick(101.0)
    assert bench.sets.cleared == 1


def test_a_failed_removal_is_tried_again(bench: Bench) -> None:
    bench.offloader.process_batch([dropped()] * AFTER, 100.0)
    bench.engine.policy = policy()
    bench.sets.error = errno.EPERM
    bench.offloader.process_batch([dropped()] * AFTER, 101.0)
    bench.sets.error = 0
    bench.offloader.process_batch([dropped()] * AFTER, 102.0)
    assert bench.offloaded() == [1]
    bench.offloader.tick(106.0)
    assert bench.offloaded() == []
    assert bench.logged().count("offload_failed") == 1


def test_a_missing_table_is_logged_when_it_is_needed(bench: Bench) -> None:
    bench.sets.error = errno.ENOENT
    bench.offloader.tick(100.0)
    bench.offloader.refresh()
    assert bench.logged() == ""
    bench.offloader.process_batch([dropped()] * AFTER, 100.5)
    bench.offloader.process_batch([dropped()] * AFTER, 101.0)
    assert bench.logged().count("rules install` creates it") == 1
    bench.sets.error = 0
    bench.offloader.process_batch([dropped()] * AFTER, 106.0)
    assert bench.offloaded() == [1]


def test_counters_and_the_event(bench: Bench) -> None:
    bench.offloader.process_batch([dropped()] * AFTER, 100.0)
    bench.sets.dropped = 1000
    bench.offloader.refresh()
    bench.offloader.tick(100.5)
    assert bench.stats.counters["offload_drops"] == 1000
    assert bench.stats.gauges["offload_entries"] == 1
    assert '"offload_drops":1000' in bench.logged()
    bench.offloader.tick(101.5)
    assert bench.logged().count('"offloaded"') == 1
    bench.sets.dropped = 7
    bench.offloader.close(102.0)
    assert bench.offloaded() == []
    assert '"offload_drops":7' in bench.logged()
