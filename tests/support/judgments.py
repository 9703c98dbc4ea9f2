# SPDX-License-Identifier: MIT
"""Hand-made judgments, for tests of the steps after judging."""

from collections.abc import Sequence

from nfq_guard.engine import Engine, Judgment, Mode
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
    LookupResult,
    TcpState,
)
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.policy.default import default_policy
from nfq_guard.raw_rules import RawRules
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


class FirstByte:
    """A policy that drops packets beginning with D, marks those with M, and raises at X."""

    shadow: Policy | None = None

    def decide(
        self,
        queued: Queued,
        packet: Packet | Malformed,  # noqa: ARG002 - the protocol's
        snapshot: FlowSnapshot | None,  # noqa: ARG002 - as above
        finding: Finding,  # noqa: ARG002 - as above
        now: float,  # noqa: ARG002 - as above
    ) -> Decision:
        if queued.octets.startswith(b"X"):
            raise ZeroDivisionError("a bug")
        if queued.octets.startswith(b"M"):
            return Decision(Action.LOG, "marked", 0x99)
        return DROP_TRANSLATED if queued.octets.startswith(b"D") else LOG_REST


class NoFlows:
    """A flow table without entries."""

    evidence = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        return [None] * len(tuples)


class FakeEngine:
    """An engine with the policy `FirstByte`, whose judgments show a TCP segment."""

    def __init__(
        self, mode: Mode = Mode.ENFORCE, *, drops_failures: bool = False, unjudged_mark: int = 0
    ) -> None:
        self.mode = mode
        self.calls = 0
        self.policy: Policy = default_policy()
        self.lookup_errors = 0
        self.last_lookup_error = 0
        self.unjudged_mark = unjudged_mark
        self.raw_rules: RawRules | None = None
        self._engine = Engine(
            policy=FirstByte(),
            flows=NoFlows(),
            mode=mode,
            drops_failures=drops_failures,
            unjudged_mark=unjudged_mark,
        )

    @property
    def enforced_policy(self) -> Policy | None:
        return self.policy if self.mode is Mode.ENFORCE else None

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        assert now >= 0
        self.calls += 1
        self._engine.mode = self.mode
        self._engine.unjudged_mark = self.unjudged_mark
        judgments = self._engine.judge(batch, now=now)
        for made in judgments:
            shown = judgment()
            made.packet, made.finding = shown.packet, shown.finding
        return judgments

    @property
    def unread_verdict(self) -> int:
        self._engine.mode = self.mode
        return self._engine.unread_verdict

    def fail_verdict(self, queued: Queued) -> tuple[int, int | None]:
        self._engine.mode = self.mode
        return self._engine.fail_verdict(queued)


def queued(octets: bytes, mark: int = 0) -> Queued:
    return Queued(octets, Hook.OUTPUT, "", "lo", mark, 0)
