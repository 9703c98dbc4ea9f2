# SPDX-License-Identifier: MIT
"""Judgments made by hand, for what comes after judging."""

from collections.abc import Sequence

from nfq_guard.engine import Judgment, Mode
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_DST_NAT,
    IPS_SEEN_REPLY,
    IPV4,
    PROTO_TCP,
    Direction,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    TcpState,
)
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.policy.default import default_policy
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import ACK, PSH, Malformed, Packet, Queued, Segment

CLIENT = bytes((10, 0, 0, 1))
SERVER = bytes((10, 0, 0, 2))
DROP_TRANSLATED = Decision(Action.DROP, "translated")
LOG_REST = Decision(Action.LOG, "rest")
ALLOW_REST = Decision(Action.ALLOW, "quiet")


def segment(sport: int = 40_000, *, src: bytes = CLIENT, dst: bytes = SERVER) -> Packet:
    tcp = Segment(sport, 80, Seq(5_000), Seq(9_000), ACK | PSH, 512, 100, b"", 0)
    return Packet(IPV4, src, dst, PROTO_TCP, 140, 20, 64, 0, False, tcp)


def snapshot() -> FlowSnapshot:
    """An established, destination-translated flow without a window."""
    return FlowSnapshot(
        Evidence.BPF,
        Direction.ORIGINAL,
        FlowTuple(PROTO_TCP, CLIENT, SERVER, 40_000, 80),
        FlowTuple(PROTO_TCP, SERVER, CLIENT, 8080, 40_000),
        IPS_ASSURED | IPS_SEEN_REPLY | IPS_DST_NAT,
        0,
        0,
        300,
        TcpState.ESTABLISHED,
        None,
    )


def judgment(
    packet: Packet | Malformed | None = None,
    *,
    decision: Decision = DROP_TRANSLATED,
    reason: Reason = Reason.SEQ_OVER,
    flow: FlowSnapshot | None = None,
    verdict: int = 0,
    came_as: Queued | None = None,
    lookup_error: int = 0,
) -> Judgment:
    breach = Breach(Reason.SEQ_OVER, Seq(5_000), Seq(4_900), 100)
    return Judgment(
        came_as or Queued(b"", Hook.PREROUTING, "eth0", "", 0, 0),
        packet or segment(),
        flow,
        Finding(reason, breach if reason is Reason.SEQ_OVER else None),
        decision,
        verdict,
        lookup_error=lookup_error,
    )


class FakeEngine:
    """Judges by hand: drops what begins with D, marks M, raises at what begins with X."""

    def __init__(self, mode: Mode = Mode.ENFORCE) -> None:
        self.mode = mode
        self.calls = 0
        self.policy: Policy = default_policy()
        self.lookup_errors = 0
        self.last_lookup_error = 0

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        assert now >= 0
        self.calls += 1
        return [self._judge_one(queued) for queued in batch]

    def _judge_one(self, queued: Queued) -> Judgment:
        if queued.octets.startswith(b"X"):
            raise ZeroDivisionError("a bug")
        decision = DROP_TRANSLATED if queued.octets.startswith(b"D") else LOG_REST
        if queued.octets.startswith(b"M"):
            decision = Decision(Action.LOG, "marked", 0x99)
        drops = decision is DROP_TRANSLATED and self.mode is Mode.ENFORCE
        return judgment(decision=decision, verdict=0 if drops else 1, came_as=queued)


def queued(octets: bytes, mark: int = 0) -> Queued:
    return Queued(octets, Hook.OUTPUT, "", "lo", mark, 0)
