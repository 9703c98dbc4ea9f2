# SPDX-License-Identifier: MIT
"""The selection and limits of heals, and when a heal is undone, with a simulated clock."""

import errno
from pathlib import Path

import pytest

from nfq_guard.engine import VERDICT_ACCEPT, VERDICT_DROP, Engine, Judgment, Mode
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_SACK_PERM,
    IPS_ASSURED,
    IPS_DYING,
    IPS_OFFLOAD,
    Direction,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Peer,
    TcpState,
    answering,
)
from nfq_guard.flows.liberal import LiberalFlow
from nfq_guard.flows.open import NoFlows
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.seqno import Seq
from nfq_guard.service.settings import Settings
from nfq_guard.service.worker import heal
from nfq_guard.service.worker.heal import Healer, Limits, open_healer
from nfq_guard.service.worker.heal_record import HealedEntry, HealFile, HealRecord, NoRecord
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import ACK, Datagram, Packet, Queued, Segment

LIMITS = Limits(flow_per_minute=2, per_minute=5, most=3, timeout_s=100.0, both=False)
ORIGINAL = frozenset({Direction.ORIGINAL})
REPLY = frozenset({Direction.REPLY})
BOTH = ORIGINAL | REPLY
NOTHING: frozenset[Direction] = frozenset()


class FakeLiberal:
    """The kernel's entries by source port, each with the directions that have the flag."""

    def __init__(self) -> None:
        self.liberal: dict[int, frozenset[Direction]] = {}
        self.identity = b"1"
        self.status = IPS_ASSURED
        self.state = int(TcpState.ESTABLISHED)
        self.read_error = 0
        self.write_error = 0
        self.writes = 0
        self.closed = False

    def read(self, wanted: FlowTuple, zone: int) -> LiberalFlow | None:
        if self.read_error:
            raise OSError(self.read_error, "refused to read")
        if wanted.sport not in self.liberal:
            raise OSError(errno.ENOENT, "absent")
        found = FlowSnapshot(
            Evidence.CTNETLINK, 0, wanted, answering(wanted), self.status, 0, zone, 9, self.state,
            None,
        )  # fmt: skip
        return LiberalFlow(found, self.identity, self.liberal[wanted.sport])

    def write(
        self, wanted: FlowTuple, zone: int, directions: frozenset[Direction], *, on: bool
    ) -> None:
        assert zone == 0
        if self.write_error:
            raise OSError(self.write_error, "refused to write")
        self.writes += 1
        before = self.liberal[wanted.sport]
        self.liberal[wanted.sport] = before | directions if on else before - directions

    def close(self) -> None:
        self.closed = True


class Bench:
    """A `Healer` and fakes of what it uses."""

    def __init__(
        self, log: Path, limits: Limits = LIMITS, record: HealRecord | None = None
    ) -> None:
        self.kernel = FakeLiberal()
        self.kernel.liberal = dict.fromkeys(range(1, 20), NOTHING)
        self.stats = Stats()
        self.sink = LineSink(log)
        self.log = log
        self.engine = Engine(policy=policy(), flows=NoFlows(), mode=Mode.ENFORCE)
        self.healer = self.start(limits, record)

    def start(self, limits: Limits = LIMITS, record: HealRecord | None = None) -> Healer:
        return Healer(
            self.kernel, record or NoRecord(), self.engine, self.stats, EventLog(self.sink), limits
        )

    def heal(self, *sports: int, now: float = 0.0, direction: int = 1) -> None:
        self.healer.process_batch([judged(sport, direction=direction) for sport in sports], now)

    def healed(self) -> list[int]:
        """Source ports of the flows with the flag."""
        return [sport for sport, directions in self.kernel.liberal.items() if directions]

    def count(self, name: str) -> int:
        return self.stats.counters[name]

    def logged(self) -> str:
        self.sink.push(0.0)
        return self.log.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "log")


def policy(action: str = "heal") -> Policy:
    table = {"default": "allow", "rule": [{"action": action}]}
    return compile_policy(parse_policy(table, source="test"))


def judged(
    sport: int = 1,
    *,
    direction: int = 1,
    action: Action = Action.HEAL,
    verdict: int = VERDICT_DROP,
    seq: int = 2000,
    ack: int = 1008,
) -> Judgment:
    """A segment of a server, 8 bytes over what its client has sent so far."""
    client, server = b"\n\0\0\1", b"\n\0\0\2"
    flow = FlowTuple(6, client, server, sport, 2)
    segment = Segment(2, sport, Seq(seq), Seq(ack), ACK, 100, 10, b"", 0)
    packet = Packet(4, server, client, 6, 60, 20, 64, 0, False, segment)
    peer = Peer(Seq(1000), Seq(1500), 1000, Seq(2000), 0, IP_CT_TCP_FLAG_SACK_PERM)
    other = Peer(Seq(2000), Seq(2500), 1000, Seq(1000), 0, 0)
    peers = (peer, other) if direction else (other, peer)
    snapshot = FlowSnapshot(
        Evidence.BPF, direction, flow, answering(flow), IPS_ASSURED, 0, 0, 300,
        TcpState.ESTABLISHED, peers,
    )  # fmt: skip
    breach = Breach(Reason.ACK_OVER, Seq(ack), Seq(1000), 8)
    return Judgment(
        Queued(b"", 0, "eth0", "", 0, 0),
        packet,
        snapshot,
        Finding(Reason.ACK_OVER, breach),
        Decision(action, "rule"),
        verdict,
    )


def test_the_sender_of_the_packet_is_healed(bench: Bench) -> None:
    bench.heal(1)
    bench.heal(2, direction=0)
    assert (bench.kernel.liberal[1], bench.kernel.liberal[2]) == (REPLY, ORIGINAL)
    assert bench.count("heals") == 2


def test_both_senders_where_the_settings_say_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log", LIMITS._replace(both=True))
    bench.heal(1)
    assert bench.kernel.liberal[1] == BOTH
    bench.healer.close()
    assert bench.healed() == []


@pytest.mark.parametrize("action", [Action.DROP, Action.LOG, Action.ALLOW])
def test_other_actions_heal_nothing(bench: Bench, action: Action) -> None:
    bench.healer.process_batch([judged(action=action)], 0.0)
    assert bench.healed() == []


def test_a_policy_that_heals_nothing_is_not_looked_at(bench: Bench) -> None:
    bench.engine.policy = policy("allow")
    bench.heal(1)
    assert bench.healed() == []


def test_a_packet_far_from_its_window_heals_nothing(bench: Bench) -> None:
    bench.healer.process_batch([judged(seq=2000 + (1 << 30))], 0.0)
    assert bench.healed() == []
    assert bench.count("heals_refused") == 1


def test_packets_without_a_window_heal_nothing(bench: Bench) -> None:
    datagram, without_flow, without_window, without_breach = (judged() for _ in range(4))
    assert isinstance(datagram.packet, Packet)
    datagram.packet.l4 = Datagram(1, 2, 8, 0)
    without_flow.snapshot = None
    assert without_window.snapshot is not None
    without_window.snapshot.peers = None
    without_breach.finding = Finding(Reason.RACED)
    odd = [datagram, without_flow, without_window, without_breach]
    bench.healer.process_batch(odd, 0.0)
    assert bench.healed() == []


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0, TcpState.ESTABLISHED),
        (IPS_ASSURED | IPS_DYING, TcpState.ESTABLISHED),
        (IPS_ASSURED | IPS_OFFLOAD, TcpState.ESTABLISHED),
        (IPS_ASSURED, TcpState.CLOSE),
    ],
)
def test_a_flow_that_has_moved_on_is_left_alone(bench: Bench, status: int, state: TcpState) -> None:
    bench.kernel.status = status
    bench.kernel.state = int(state)
    bench.heal(1)
    assert bench.healed() == []
    assert bench.count("heals_refused") == 1


def test_a_flow_that_is_gone_is_no_error(bench: Bench) -> None:
    bench.heal(99)
    assert (bench.count("heals_refused"), bench.count("heal_errors")) == (1, 0)
    bench.kernel.write_error = errno.EBUSY
    bench.heal(1)
    assert (bench.count("heals_refused"), bench.count("heal_errors")) == (2, 0)


def test_a_flow_that_had_the_flag_keeps_it(bench: Bench) -> None:
    bench.kernel.liberal[1] = BOTH
    bench.heal(1)
    bench.healer.close()
    assert bench.kernel.liberal[1] == BOTH
    assert bench.kernel.writes == 0
    assert bench.count("heals") == 0


def test_only_the_flag_that_was_set_is_undone(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log", LIMITS._replace(both=True))
    bench.kernel.liberal[1] = ORIGINAL
    bench.heal(1)
    assert bench.kernel.liberal[1] == BOTH
    bench.healer.close()
    assert bench.kernel.liberal[1] == ORIGINAL


def test_heals_of_one_flow_are_limited(bench: Bench) -> None:
    """A heal that is lost, as after a new SYN, is repeated a limited number of times."""
    for _ in range(4):
        bench.heal(1)
        bench.kernel.liberal[1] = NOTHING
    assert (bench.count("heals"), bench.count("heals_over_limit")) == (2, 2)
    bench.heal(1, now=61.0)
    assert bench.count("heals") == 3


def test_a_packet_that_waited_in_the_queue_counts_no_heal(bench: Bench) -> None:
    bench.heal(1, 1, 1)
    assert (bench.count("heals"), bench.count("heals_over_limit")) == (1, 0)


def test_both_directions_can_be_healed_one_after_the_other(bench: Bench) -> None:
    bench.heal(1)
    bench.heal(1, direction=0)
    assert bench.kernel.liberal[1] == BOTH
    bench.healer.close()
    assert bench.healed() == []


def test_heals_of_all_flows_are_limited(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log", LIMITS._replace(most=100))
    bench.heal(*range(1, 10))
    assert bench.healed() == [1, 2, 3, 4, 5]
    assert bench.count("heals_over_limit") == 4
    bench.heal(6, now=60.0)
    assert bench.healed() == [1, 2, 3, 4, 5, 6]


def test_flows_healed_at_a_time_are_limited(bench: Bench) -> None:
    bench.heal(1, 2, 3, 4)
    assert bench.healed() == [1, 2, 3]
    bench.healer.tick(200.0)
    bench.heal(4, now=200.0)
    assert bench.healed() == [4]


def test_what_is_counted_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heal, "_COUNTED_MAX", 1)
    bench.heal(1, 2)
    bench.kernel.liberal[1] = NOTHING
    bench.heal(1)
    assert bench.count("heals") == 3


def test_a_flood_that_wants_heals_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heal, "_CONSIDERED_MAX", 2)
    bench.heal(1, 2, 3)
    assert bench.healed() == [1, 2]
    bench.heal(3, now=0.5)
    assert bench.healed() == [1, 2]
    bench.heal(3, now=1.0)
    assert bench.healed() == [1, 2, 3]


def test_a_heal_is_undone_after_its_time(bench: Bench) -> None:
    bench.heal(1, now=0.0)
    bench.heal(1, now=50.0)  # a straggler: the flow still needs it
    bench.healer.tick(149.0)
    assert bench.healed() == [1]
    assert bench.stats.gauges["healed_flows"] == 1
    bench.healer.tick(150.0)
    assert bench.healed() == []
    assert (bench.count("heals_undone"), bench.stats.gauges["healed_flows"]) == (1, 0)


def test_undoing_is_spread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heal, "_UNDONE_A_TICK", 2)
    bench.heal(1, 2, 3)
    bench.healer.tick(100.0)
    assert bench.healed() == [3]
    bench.healer.tick(101.0)
    assert bench.healed() == []


@pytest.mark.parametrize("change", ["gone", "another", "offloaded", "cleared"])
def test_what_is_no_longer_ours_is_not_undone(bench: Bench, change: str) -> None:
    bench.heal(1)
    if change == "gone":
        del bench.kernel.liberal[1]
    elif change == "another":
        bench.kernel.identity = b"2"
    elif change == "offloaded":
        bench.kernel.status |= IPS_OFFLOAD
    else:
        bench.kernel.liberal[1] = NOTHING
    writes = bench.kernel.writes
    bench.healer.close()
    assert bench.kernel.writes == writes
    assert (bench.count("heals_undone"), bench.count("heal_errors")) == (0, 0)


def test_an_entry_that_replaced_a_healed_one_is_healed_by_itself(bench: Bench) -> None:
    """Another program set the flag of its other direction."""
    bench.heal(1)
    bench.kernel.identity = b"2"
    bench.kernel.liberal[1] = REPLY
    bench.heal(1, direction=0)
    assert bench.kernel.liberal[1] == BOTH
    bench.healer.close()
    assert bench.kernel.liberal[1] == REPLY


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBUSY])
def test_what_the_kernel_refuses_to_undo_is_tried_again(bench: Bench, code: int) -> None:
    bench.heal(1)
    bench.kernel.write_error = code
    bench.healer.tick(100.0)
    assert bench.healed() == [1]
    bench.kernel.write_error = 0
    bench.healer.tick(101.0)
    assert bench.healed() == []


def test_undoing_ends_where_the_kernel_keeps_refusing(bench: Bench) -> None:
    bench.heal(1)
    bench.kernel.read_error = errno.EPERM
    for second in range(10):
        bench.healer.tick(100.0 + second)
    assert bench.stats.gauges["healed_flows"] == 0
    assert (bench.count("heals_undone"), bench.count("heal_errors")) == (0, 5)


def test_an_error_of_the_kernel_pauses_heals(bench: Bench) -> None:
    bench.kernel.write_error = errno.EPERM
    bench.heal(1, 2)
    bench.kernel.write_error = 0
    bench.heal(1, now=4.9)
    assert (bench.healed(), bench.count("heal_errors"), bench.count("heals")) == ([], 1, 0)
    bench.heal(1, now=5.0)
    assert bench.healed() == [1]
    assert bench.logged().count('"event":"heal_failed"') == 1
    assert "refused to write" in bench.logged()


def test_dry_run_says_what_it_would_heal(bench: Bench) -> None:
    bench.engine.mode = Mode.DRY_RUN
    flood = [judged(verdict=VERDICT_ACCEPT)] * 4
    flood.append(judged(2, verdict=VERDICT_ACCEPT))
    bench.healer.process_batch(flood, 0.0)
    bench.healer.tick(0.0)
    assert (bench.healed(), bench.kernel.writes) == ([], 0)
    assert (bench.count("would_heal"), bench.count("heals_over_limit")) == (2, 0)
    assert '"would_heal":2' in bench.logged()


@pytest.mark.parametrize("change", ["mode", "policy"])
def test_the_end_of_enforcing_undoes_all(bench: Bench, change: str) -> None:
    bench.heal(1, 2)
    if change == "mode":
        bench.engine.mode = Mode.DRY_RUN
    else:
        bench.engine.policy = policy("allow")
    bench.healer.resync()
    assert bench.healed() == []


def test_another_policy_that_heals_keeps_heals(bench: Bench) -> None:
    bench.heal(1)
    bench.engine.policy = policy()
    bench.healer.resync()
    assert bench.healed() == [1]


def test_the_next_daemon_undoes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "healed-0"
    bench = Bench(tmp_path / "log", record=HealFile(path))
    bench.heal(1, 2)
    bench.kernel.liberal[3] = BOTH
    bench.healer = bench.start(record=HealFile(path))
    assert bench.healed() == [3]
    assert bench.count("heals_undone") == 2
    bench.healer.close()
    assert not path.exists()
    assert bench.kernel.closed


def test_what_a_killed_one_left_in_both_directions(tmp_path: Path) -> None:
    """Each of two heals of a flow has a line of the record, with its own direction."""
    path = tmp_path / "healed-0"
    bench = Bench(tmp_path / "log", record=HealFile(path))
    bench.heal(1)
    bench.heal(1, direction=0, now=60.0)
    assert bench.kernel.liberal[1] == BOTH
    bench.healer = bench.start(record=HealFile(path))
    assert bench.healed() == []
    assert bench.count("heals_undone") == 1


def test_a_planted_record_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "healed-0"
    (tmp_path / "target").write_text("mine")
    path.symlink_to(tmp_path / "target")
    bench = Bench(tmp_path / "log", record=HealFile(path))
    bench.heal(1)
    bench.healer.close()
    assert (bench.healed(), bench.count("heal_errors")) == ([], 2)
    assert (tmp_path / "target").read_text() == "mine"
    assert "heal_failed" in bench.logged()


def test_a_record_has_only_what_is_healed(tmp_path: Path) -> None:
    path = tmp_path / "healed-0"
    bench = Bench(tmp_path / "log", record=HealFile(path))
    bench.heal(1, now=0.0)
    bench.heal(2, now=50.0)
    bench.healer.tick(100.0)
    (left,) = HealFile(path).take()
    assert left.wanted.sport == 2


def test_what_the_kernel_refuses_to_undo_at_the_start_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "healed-0"
    bench = Bench(tmp_path / "log", record=HealFile(path))
    bench.heal(1, 2)
    bench.kernel.read_error = errno.EPERM
    bench.healer = bench.start(record=HealFile(path))
    assert (bench.count("heal_errors"), bench.healed()) == (2, [1, 2])
    bench.kernel.read_error = 0
    bench.healer.tick(0.0)
    assert (bench.count("heals_undone"), bench.healed()) == (2, [])


class FullRecord:
    """A record on a full disk."""

    def take(self) -> list[HealedEntry]:
        return []

    def add(self, entry: HealedEntry) -> None:
        raise OSError(errno.ENOSPC, f"no room for {entry}")

    def replace(self, entries: list[HealedEntry]) -> None:
        raise OSError(errno.ENOSPC, f"no room for {entries}")

    def close(self) -> None:
        return


def test_a_heal_that_cannot_be_recorded_is_not_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log", record=FullRecord())
    bench.heal(1)
    bench.healer.close()
    assert bench.healed() == []
    assert bench.count("heal_errors") == 2


def test_the_event_has_what_grew(bench: Bench) -> None:
    bench.heal(1, 99)
    bench.healer.tick(0.0)
    bench.healer.tick(1.0)
    said = bench.logged()
    assert said.count('"event":"healed"') == 1
    assert '"heals":1' in said
    assert '"heals_refused":1' in said
    assert '"example":{"src":"10.0.0.1","dst":"10.0.0.2","sport":1,"dport":2}' in said


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["", "socket"])
def test_a_healer_that_heals_nothing_makes_no_file(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path / "log")
    settings = Settings(control_socket=name and str(tmp_path / name))
    healer = open_healer(settings, 0, bench.engine, bench.stats, EventLog(bench.sink))
    assert healer is not None
    healer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
