# SPDX-License-Identifier: MIT
"""The whole program without the kernel."""

import errno
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP
from scapy.layers.sctp import SCTP

from nfq_guard.engine import VERDICT_ACCEPT, VERDICT_DROP, Engine, Mode
from nfq_guard.errors import ConfigError, Mistake
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IPS_SEQ_ADJUST,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    LookupFailed,
    LookupResult,
    Peer,
    SeqShift,
)
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.seqno import Seq, seq
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, Malformed, Packet, Queued, tuple_of


class FixedPolicy:
    """Decides the same for every packet."""

    shadow = None

    def __init__(self, action: Action) -> None:
        self.decision = Decision(action, "fixed")

    def decide(
        self,
        queued: Queued,  # noqa: ARG002 - the protocol's
        packet: Packet | Malformed,  # noqa: ARG002 - as above
        snapshot: FlowSnapshot | None,  # noqa: ARG002 - as above
        finding: Finding,  # noqa: ARG002 - as above
        now: float,  # noqa: ARG002 - as above
    ) -> Decision:
        return self.decision


class FakeFlows:
    """A table of flows that records the lookups."""

    def __init__(
        self, entries: dict[int, LookupResult] | None = None, evidence: Evidence = Evidence.BPF
    ) -> None:
        self.evidence = evidence
        self.entries = entries or {}
        self.asked: list[list[FlowTuple]] = []

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        self.asked.append(list(tuples))
        return [self.entries.get(one.sport) for one in tuples]


def queued(packet: object) -> Queued:
    return Queued(bytes(packet), Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)  # type: ignore[call-overload] # scapy is untyped


def engine(flows: FakeFlows, action: Action = Action.DROP, mode: Mode = Mode.ENFORCE) -> Engine:
    return Engine(policy=FixedPolicy(action), flows=flows, mode=mode)


@pytest.mark.parametrize(
    ("action", "mode", "verdict"),
    [
        (Action.DROP, Mode.ENFORCE, VERDICT_DROP),
        (Action.LOG, Mode.ENFORCE, VERDICT_ACCEPT),
        (Action.ALLOW, Mode.ENFORCE, VERDICT_ACCEPT),
        (Action.DROP, Mode.DRY_RUN, VERDICT_ACCEPT),
    ],
)
def test_verdict(action: Action, mode: Mode, verdict: int) -> None:
    judged = engine(FakeFlows(), action, mode).judge([queued(IP() / TCP())], now=0.0)
    assert [one.verdict for one in judged] == [verdict]
    assert judged[0].decision.action is action


def test_one_lookup_a_batch_and_judgments_in_order() -> None:
    """Malformed packets are not looked up, and do not shift the answers of the others."""
    known = FlowSnapshot(
        Evidence.BPF,
        0,
        FlowTuple(6, b"", b"", 2, 3),
        FlowTuple(6, b"", b"", 3, 2),
        0,
        0,
        0,
        9,
        3,
        None,
    )
    flows = FakeFlows({2: known})
    batch = [
        Queued(b"", 0, "", "", 0, CHECKSUM_GOOD),
        queued(IP() / TCP(sport=1, flags="R")),
        queued(IP(proto=50)),
        queued(IP() / TCP(sport=2, flags="SA")),
    ]
    judged = engine(flows).judge(batch, now=0.0)
    assert [len(asked) for asked in flows.asked] == [2]
    assert [one.finding.reason for one in judged] == [
        Reason.MALFORMED,
        Reason.NO_ENTRY,
        Reason.UNSUPPORTED,
        Reason.BAD_TRANSITION,
    ]
    assert [one.queued for one in judged] == batch
    assert judged[3].snapshot is known


def test_a_failed_lookup_is_no_evidence() -> None:
    """One of three fails: its packet alone is judged without evidence."""
    flows = FakeFlows({2: LookupFailed(errno.EINVAL)})
    one = engine(flows)
    judged = one.judge([queued(IP() / TCP(sport=port, flags="SA")) for port in (1, 2, 3)], now=0.0)
    assert [judgment.finding.reason for judgment in judged] == [
        Reason.NO_ENTRY,
        Reason.UNSUPPORTED,
        Reason.NO_ENTRY,
    ]
    assert [judgment.snapshot for judgment in judged] == [None] * 3
    assert [judgment.lookup_error for judgment in judged] == [0, errno.EINVAL, 0]
    assert (one.lookup_errors, one.last_lookup_error) == (1, errno.EINVAL)


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("offset", [5, 2**32 - 5, 2**31 + 7])
@pytest.mark.parametrize("place", [0, 2**31 - 5000, 2**32 - 5000])
def test_a_flow_whose_sequence_numbers_conntrack_shifts(
    direction: int, offset: int, place: int
) -> None:
    """An acknowledgement is compared with what its own sender was shown (kernel.md 1.6)."""
    sender = Peer(seq(1000 + place), seq(3000 + place), 4000, seq(5000 + place), 0, 0)
    receiver = Peer(seq(5000 + place), seq(9000 + place), 2000, seq(1000 + place), 0, 0)
    there, back = FlowTuple(6, b"", b"", 2, 3), FlowTuple(6, b"", b"", 3, 2)
    none = SeqShift(Seq(0), 0, 0)
    shown = seq(5000 + place + offset)
    for moved in (
        SeqShift(seq(shown + 100), offset, 99),
        SeqShift(seq(shown - 100), 99, offset),
    ):
        for over in (0, 1, 7):
            flow = FlowSnapshot(
                Evidence.BPF, direction, there, back, IPS_SEQ_ADJUST, 0, 0, 9, 3,
                (receiver, sender) if direction else (sender, receiver),
                shifts=(moved, none) if direction else (none, moved),
            )  # fmt: skip
            sent = IP() / TCP(sport=2, flags="A", seq=seq(1000 + place), ack=seq(shown + over))
            (judged,) = engine(FakeFlows({2: flow})).judge([queued(sent)], now=0.0)
            if over:
                breach = Breach(Reason.ACK_OVER, seq(shown + over), shown, over)
                assert judged.finding == Finding(Reason.ACK_OVER, breach)
            else:
                assert judged.finding.reason is Reason.RACED
            assert judged.snapshot is flow
            assert flow.peers is not None
            assert flow.peers[direction].td_end == seq(1000 + place)
            assert flow.peers[direction].td_maxack == shown
            assert flow.peers[1 - direction].td_end == shown
            assert flow.peers[1 - direction].td_maxend == seq(9000 + place + offset)
            assert flow.peers[1 - direction].td_maxack == seq(1000 + place)


def test_shifts_concern_the_window_of_a_segment_alone() -> None:
    """Evidence without a window has nothing to apply them to, nor has another packet."""
    none = SeqShift(Seq(0), 7, 7)
    there, back = FlowTuple(6, b"", b"", 2, 3), FlowTuple(6, b"", b"", 3, 2)
    for sent in (
        IP() / TCP(sport=2, flags="A"),
        IP() / ICMP(type=3) / IP() / TCP(dport=2),
    ):
        flow = FlowSnapshot(
            Evidence.CTNETLINK,
            0,
            there,
            back,
            IPS_SEQ_ADJUST,
            0,
            0,
            9,
            3,
            None,
            shifts=(none, none),
        )
        (judged,) = engine(FakeFlows({2: flow})).judge([queued(sent)], now=0.0)
        assert judged.snapshot is flow
        assert flow.peers is None


def test_no_lookup_without_evidence() -> None:
    flows = FakeFlows(evidence=Evidence.NONE)
    assert engine(flows).judge([queued(IP() / TCP())], now=0.0)
    assert flows.asked == []
    assert engine(flows).judge([], now=0.0) == []


def test_tuples() -> None:
    """An ICMP error is looked up by the reversed tuple of the packet that it quotes."""

    def of(packet: object) -> FlowTuple | None:
        decoded = decode(bytes(packet))  # type: ignore[call-overload] # scapy is untyped
        assert isinstance(decoded, Packet)
        return tuple_of(decoded)

    there = IP(src="10.0.0.1", dst="10.0.0.2")
    a, b = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    assert of(there / UDP(sport=5, dport=6)) == FlowTuple(17, a, b, 5, 6)
    assert of(there / ICMP(type=8, id=7)) == FlowTuple(1, a, b, 7, 8 << 8)
    error = IP(src="10.0.0.9", dst="10.0.0.1") / ICMP(type=3) / there / TCP(sport=5, dport=6)
    assert of(error) == FlowTuple(6, b, a, 6, 5)
    assert of(there / ICMP(type=3) / b"") is None
    assert of(IP(proto=50)) is None
    assert of(there / GRE(version=1, proto=0x880B) / b"\0\0\0\7") == FlowTuple(47, a, b, 0, 7)
    assert of(there / SCTP(sport=5, dport=6)) == FlowTuple(132, a, b, 5, 6)


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_octets_are_judged(octets: list[bytes]) -> None:
    """One judgment each, whatever arrives."""
    batch = [Queued(one, 0, "", "", 0, CHECKSUM_GOOD) for one in octets]
    assert len(engine(FakeFlows()).judge(batch, now=0.0)) == len(batch)


def test_a_configuration_error_names_every_mistake() -> None:
    error = ConfigError("x.toml", [Mistake("a.b", "a number", "'x'"), Mistake("", "a table", "[]")])
    assert (
        str(error)
        == "x.toml: a.b: expected a number, found 'x'\nx.toml: expected a table, found []"
    )
    assert error.exit_status == 2


@pytest.mark.parametrize(
    ("mode", "drops", "verdict", "mark"),
    [
        (Mode.ENFORCE, True, VERDICT_DROP, None),
        (Mode.ENFORCE, False, VERDICT_ACCEPT, None),
        (Mode.DRY_RUN, True, VERDICT_ACCEPT, 0x3),
    ],
)
def test_fail_verdict(mode: Mode, *, drops: bool, verdict: int, mark: int | None) -> None:
    """Dry-run accepts a packet whose judging raised, and no later rule drops it."""
    made = Engine(
        policy=FixedPolicy(Action.DROP),
        flows=FakeFlows(),
        mode=mode,
        drops_failures=drops,
        unjudged_mark=0x1000,
    )
    packet = Queued(b"", Hook.PREROUTING, "eth0", "", 0x1003, CHECKSUM_GOOD)
    assert made.fail_verdict(packet) == (verdict, mark)
    assert made.unread_verdict == verdict


@pytest.mark.parametrize("mode", list(Mode))
def test_no_mark_without_a_rule_that_expects_one(mode: Mode) -> None:
    """A dry-run leaves the mark of a packet alone whose judging raised."""
    packet = Queued(b"", Hook.PREROUTING, "eth0", "", 3, CHECKSUM_GOOD)
    assert engine(FakeFlows(), mode=mode).fail_verdict(packet) == (VERDICT_ACCEPT, None)


def test_only_enforce_mode_has_an_enforced_policy() -> None:
    made = engine(FakeFlows())
    assert made.enforced_policy is made.policy
    made.mode = Mode.DRY_RUN
    assert made.enforced_policy is None


@pytest.mark.parametrize(
    ("mode", "action", "verdict", "mark"),
    [
        (Mode.ENFORCE, Action.ALLOW, VERDICT_ACCEPT, 0x7),
        (Mode.ENFORCE, Action.DROP, VERDICT_DROP, None),
        (Mode.DRY_RUN, Action.DROP, VERDICT_ACCEPT, 0x7),
    ],
)
def test_accepted_packets_lose_the_unjudged_mark(
    mode: Mode, action: Action, verdict: int, mark: int | None
) -> None:
    """The bits that mean "not judged" are cleared; other bits stay."""
    engine = Engine(policy=FixedPolicy(action), flows=FakeFlows(), mode=mode, unjudged_mark=0x1000)
    octets = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A"))
    queued = Queued(octets, int(Hook.PREROUTING), "", "", 0x1007, CHECKSUM_GOOD)
    (judgment,) = engine.judge([queued], now=0.0)
    assert (judgment.verdict, judgment.mark) == (verdict, mark)
