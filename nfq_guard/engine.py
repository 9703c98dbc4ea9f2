# SPDX-License-Identifier: MIT
"""The whole program without the kernel: packets in, judgments out (design 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, final

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Finding
from nfq_guard.flow import (
    Evidence,
    FlowSnapshot,
    FlowTuple,
    LookupFailed,
    LookupResult,
    answering,
)
from nfq_guard.policy.decision import Decision, Policy
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.shadow import Disagreement, Shadow
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Datagram, IcmpMessage, Malformed, Packet, Queued, Segment

VERDICT_DROP: Final = 0
VERDICT_ACCEPT: Final = 1


class Mode(StrEnum):
    """Whether decisions are carried out; in dry-run every verdict is accept."""

    ENFORCE = "enforce"
    DRY_RUN = "dry-run"


class FlowLookup(Protocol):
    """Where the flows are looked up: the kernel, or our own conntrack."""

    @property
    def evidence(self) -> Evidence:
        """What the snapshots hold; NONE when nothing can be looked up."""

    def lookup(self, tuples: Sequence[FlowTuple]) -> Sequence[LookupResult]:
        """One result a tuple, in order."""


@final
@dataclass(init=False, slots=True)
class Judgment:
    """One packet, judged.

    Attributes:
        queued: The packet as it came.
        packet: The packet decoded.
        snapshot: Its flow; None where there is no entry, no way to look, or the lookup failed.
        finding: Why it is INVALID.
        decision: What the policy says.
        verdict: What the kernel is told: `VERDICT_DROP` or `VERDICT_ACCEPT`.
        shadow: What a policy on trial says otherwise; None when it agrees or there is none.
        lookup_error: The errno of a lookup that failed, else 0.
    """

    queued: Queued
    packet: Packet | Malformed
    snapshot: FlowSnapshot | None
    finding: Finding
    decision: Decision
    verdict: int
    shadow: Disagreement | None
    lookup_error: int

    def __init__(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        decision: Decision,
        verdict: int,
        shadow: Disagreement | None = None,
        lookup_error: int = 0,
    ) -> None:
        self.queued = queued
        self.packet = packet
        self.snapshot = snapshot
        self.finding = finding
        self.decision = decision
        self.verdict = verdict
        self.shadow = shadow
        self.lookup_error = lookup_error


def tuple_of(packet: Packet) -> FlowTuple | None:
    """The tuple by which conntrack finds the flow of `packet`; None if it has none.

    For an ICMP error that is what would answer the quoted packet (kernel.md 2).
    """
    l4 = packet.l4
    if isinstance(l4, Segment | Datagram):
        return FlowTuple(packet.proto, packet.src, packet.dst, l4.sport, l4.dport)
    if isinstance(l4, IcmpMessage):
        quoted = l4.quoted
        if quoted is not None:
            return answering(quoted)
        if not l4.is_error:
            return FlowTuple(
                packet.proto, packet.src, packet.dst, l4.identifier, l4.type << 8 | l4.code
            )
    return None


@final
class Engine:
    """Judges batches of INVALID packets by one policy.

    Attributes:
        mode: May be switched between two batches.
        lookup_errors: Lookups that failed, since the start.
        last_lookup_error: The errno of the last one; 0 while none failed.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        flows: FlowLookup,
        mode: Mode,
        kernel: KernelRules = KERNEL_6_1,
        sysctls: Sysctls = DEFAULT_SYSCTLS,
    ) -> None:
        """Put the parts together.

        Args:
            policy: What to do with each finding.
            flows: Where flows are looked up.
            mode: Whether decisions are carried out.
            kernel: What the kernel that called the packets INVALID can mean by it.
            sysctls: How that kernel is set.
        """
        self.mode = mode
        self.lookup_errors = 0
        self.last_lookup_error = 0
        self._policy = policy
        self._shadow = _shadow_of(policy)
        self._flows = flows
        self._kernel = kernel
        self._sysctls = sysctls

    @property
    def policy(self) -> Policy:
        """The acting policy; swap it between two batches to reload, and its shadow with it."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self._shadow = _shadow_of(policy)

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        """Judge packets seen at `now`, monotonic seconds; one judgment each, in order.

        A packet whose lookup failed is judged without evidence: an error proves nothing, least of
        all that there is no entry.
        """
        packets: list[Packet | Malformed] = []
        tuples: list[FlowTuple] = []
        wanted: list[int] = []
        for queued in batch:
            packet = decode(queued.octets)
            if isinstance(packet, Packet):
                flow_tuple = tuple_of(packet)
                if flow_tuple is not None:
                    wanted.append(len(packets))
                    tuples.append(flow_tuple)
            packets.append(packet)
        snapshots: list[FlowSnapshot | None] = [None] * len(packets)
        failed: dict[int, int] = {}
        evidence = self._flows.evidence
        if tuples and evidence is not Evidence.NONE:
            results = self._flows.lookup(tuples)
            for place, index in enumerate(wanted):
                result = results[place]
                if isinstance(result, LookupFailed):
                    failed[index] = result.code
                else:
                    snapshots[index] = result
        if failed:
            return self._judge_with_failures(batch, packets, snapshots, failed, now)
        return [
            self._judge_one(queued, packets[index], snapshots[index], evidence, now, 0)
            for index, queued in enumerate(batch)
        ]

    def _judge_with_failures(
        self,
        batch: Sequence[Queued],
        packets: list[Packet | Malformed],
        snapshots: list[FlowSnapshot | None],
        failed: dict[int, int],
        now: float,
    ) -> list[Judgment]:
        """As `judge`, with the errno of each failed lookup by its packet's index."""
        judgments: list[Judgment] = []
        for index, queued in enumerate(batch):
            code = failed.get(index, 0)
            if code:
                self.lookup_errors += 1
                self.last_lookup_error = code
            evidence = Evidence.NONE if code else self._flows.evidence
            judgments.append(
                self._judge_one(queued, packets[index], snapshots[index], evidence, now, code)
            )
        return judgments

    def _judge_one(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        evidence: Evidence,
        now: float,
        lookup_error: int,
    ) -> Judgment:
        finding = diagnose(queued, packet, snapshot, evidence, self._kernel, self._sysctls)
        decision = self._policy.decide(queued, packet, snapshot, finding, now)
        verdict = VERDICT_DROP if decision.drops and self.mode is Mode.ENFORCE else VERDICT_ACCEPT
        shadow = self._shadow
        told = None
        if shadow is not None:
            told = shadow.hold(queued, packet, snapshot, finding, now, decision)
        return Judgment(queued, packet, snapshot, finding, decision, verdict, told, lookup_error)


def _shadow_of(policy: Policy) -> Shadow | None:
    return policy.shadow if isinstance(policy, CompiledPolicy) else None
