# SPDX-License-Identifier: MIT
"""Judges packets without input or output: packets in, judgments out.

The daemon and a replay use the same engine. The daemon looks flows up in the kernel, a replay in
the table of `conntrack`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, final

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.log_text import Logged
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.window import as_sender_counts
from nfq_guard.diagnose import diagnose, diagnose_logged
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple, LookupFailed, LookupResult
from nfq_guard.policy.decision import Decision, Policy
from nfq_guard.policy.shadow import Disagreement, disagreement
from nfq_guard.raw_rules import RawRules, unless_spared
from nfq_guard.resets import Passed
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Malformed, Packet, Queued, Segment, tuple_of

VERDICT_DROP: Final = 0
VERDICT_ACCEPT: Final = 1


class Mode(StrEnum):
    """Whether decisions are carried out; dry-run accepts every packet and keeps its mark."""

    ENFORCE = "enforce"
    DRY_RUN = "dry-run"


class FlowLookup(Protocol):
    """Looks flows up: in the kernel, or in the flow table of a replay."""

    @property
    def evidence(self) -> Evidence:
        """The content of the snapshots; NONE when no flow can be looked up."""

    def lookup(self, tuples: Sequence[FlowTuple]) -> Sequence[LookupResult]:
        """One result a tuple, in order."""


class PacketLog(Protocol):
    """The kernel's log of INVALID packets, for evidence without a window."""

    def texts(self, batch: Sequence[Queued]) -> Sequence[Logged | None]:
        """What the kernel logged about each packet, in order; None where no text was found."""

    def silent(self) -> frozenset[Reason]:
        """The reasons that a packet of the last batch without a text may have.

        Empty while a missing text proves nothing.
        """


@final
@dataclass(init=False, slots=True)
class Judgment:
    """One packet, judged.

    Attributes:
        queued: The packet as it came.
        packet: The packet decoded.
        snapshot: Its flow; None without an entry, without a lookup, or if the lookup failed.
        finding: Why it is INVALID.
        decision: The decision of the policy.
        verdict: `VERDICT_DROP` or `VERDICT_ACCEPT`; unlike `decision` it depends on the mode.
        mark: Packet mark to set with the verdict; None leaves it unchanged.
        shadow: The decision of a policy on trial if it differs; else None.
        lookup_error: The errno of a lookup that failed, else 0.
        cause: The packet that this RST answers, once the worker has looked; else None.
        spared: Whether no policy drops it, because rules of the host hide its other half.
    """

    queued: Queued
    packet: Packet | Malformed
    snapshot: FlowSnapshot | None
    finding: Finding
    decision: Decision
    verdict: int
    mark: int | None
    shadow: Disagreement | None
    lookup_error: int
    cause: Passed | None
    spared: bool

    def __init__(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        decision: Decision,
        verdict: int,
        mark: int | None = None,
        shadow: Disagreement | None = None,
        lookup_error: int = 0,
    ) -> None:
        self.queued = queued
        self.packet = packet
        self.snapshot = snapshot
        self.finding = finding
        self.decision = decision
        self.verdict = verdict
        self.mark = mark
        self.shadow = shadow
        self.lookup_error = lookup_error
        self.cause = None
        self.spared = False


@final
class Engine:
    """Judges batches of INVALID packets by one policy.

    Only this class depends on the mode: it makes all verdicts and marks, also those of packets that
    could not be judged. In dry-run every packet is accepted, and keeps its mark.

    Attributes:
        mode: May be switched between two batches.
        unjudged_mark: Mark bits that the rules set on every packet before they queue it, and that
            are cleared in an accepted packet; 0 for none. May be replaced between two batches.
        sysctls: The conntrack sysctls of the kernel; may be replaced between two batches.
        raw_rules: The host's rules before conntrack, whose packets are not dropped; None for none.
        lookup_errors: Lookups that failed, since the start.
        last_lookup_error: The errno of the last failed lookup; 0 before the first.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        flows: FlowLookup,
        log: PacketLog | None = None,
        mode: Mode,
        kernel: KernelRules = KERNEL_6_1,
        sysctls: Sysctls = DEFAULT_SYSCTLS,
        drops_failures: bool = False,
        unjudged_mark: int = 0,
    ) -> None:
        """Judge by `policy`, and look flows up in `flows`.

        Args:
            policy: Decides about each finding.
            flows: Looks flows up.
            log: The kernel's log, if `flows` has no window; else None.
            mode: Whether decisions are carried out.
            kernel: The conntrack rules of the kernel that called the packets INVALID.
            sysctls: As the attribute.
            drops_failures: Whether a packet is dropped when judging it raises.
            unjudged_mark: As the attribute.
        """
        self.mode = mode
        self.unjudged_mark = unjudged_mark
        self.sysctls = sysctls
        self.raw_rules: RawRules | None = None
        self.lookup_errors = 0
        self.last_lookup_error = 0
        self._policy = policy
        self._shadow = policy.shadow
        self._drops_failures = drops_failures
        self._flows = flows
        self._log = log
        self._kernel = kernel

    @property
    def policy(self) -> Policy:
        """The acting policy; swap it between two batches to reload, and its shadow with it."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self._shadow = policy.shadow

    def look_up_in(self, flows: FlowLookup, log: PacketLog | None) -> None:
        """Use other evidence from the next batch on."""
        self._flows = flows
        self._log = log

    @property
    def enforced_policy(self) -> Policy | None:
        """The policy whose decisions are carried out; None in dry-run."""
        return self._policy if self.mode is Mode.ENFORCE else None

    @property
    def unread_verdict(self) -> int:
        """The verdict of a packet that was queued and never read."""
        drops = self._drops_failures and self.mode is Mode.ENFORCE
        return VERDICT_DROP if drops else VERDICT_ACCEPT

    def fail_verdict(self, queued: Queued) -> tuple[int, int | None]:
        """Verdict and mark of a packet whose judging raised.

        In dry-run it is accepted like a judged packet, so that no later rule drops it as unjudged.
        """
        if self.mode is Mode.ENFORCE:
            return self.unread_verdict, None
        unjudged = self.unjudged_mark
        return VERDICT_ACCEPT, queued.mark & ~unjudged if unjudged else None

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        """Judge packets seen at `now`, monotonic seconds; one judgment each, in order.

        A packet whose lookup failed is judged without evidence: an error does not prove that there
        is no entry.
        """
        packets: list[Packet | Malformed] = []
        tuples: list[FlowTuple] = []
        wanted: list[int] = []
        for queued in batch:
            packet = decode(queued.octets, queued.wire_len)
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
                    if result is not None and result.shifts is not None:
                        _apply_shifts(result, packets[index])
                    snapshots[index] = result
        if failed or self._log is not None:
            return self._judge_one_by_one(batch, packets, snapshots, failed, now)
        return [
            self.judge_packet(queued, packets[index], snapshots[index], evidence, now, 0)
            for index, queued in enumerate(batch)
        ]

    def _judge_one_by_one(
        self,
        batch: Sequence[Queued],
        packets: list[Packet | Malformed],
        snapshots: list[FlowSnapshot | None],
        failed: dict[int, int],
        now: float,
    ) -> list[Judgment]:
        """`judge`, with the errno of each failed lookup by its packet's index, and with the log.

        The evidence of a packet whose reason the log has is the log.
        """
        judgments: list[Judgment] = []
        log = self._log
        texts = None if log is None else log.texts(batch)
        for index, queued in enumerate(batch):
            packet = packets[index]
            snapshot = snapshots[index]
            code = failed.get(index, 0)
            if code:
                self.lookup_errors += 1
                self.last_lookup_error = code
            evidence = Evidence.NONE if code else self._flows.evidence
            finding: Finding | None = None
            if log is not None and texts is not None:
                text = texts[index]
                if text is not None and text.reason is not None and snapshot is not None:
                    snapshot.evidence = Evidence.KERNEL_LOG
                finding = diagnose_logged(
                    queued,
                    packet,
                    snapshot,
                    evidence,
                    self._kernel,
                    self.sysctls,
                    text,
                    log.silent,
                )
            judgments.append(
                self.judge_packet(queued, packet, snapshot, evidence, now, code, finding)
            )
        return judgments

    def judge_packet(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        evidence: Evidence,
        now: float,
        lookup_error: int = 0,
        finding: Finding | None = None,
    ) -> Judgment:
        """Judge one packet that is decoded and looked up already; for a replay, and for `judge`.

        Args:
            queued: The packet as it came.
            packet: The same, decoded.
            snapshot: Its flow (`tuple_of`); None without one.
            evidence: The content of the snapshot; NONE without a lookup or where it failed.
            now: Monotonic seconds.
            lookup_error: The errno of a lookup that failed; 0 if none did.
            finding: Why it is INVALID, if known; None to diagnose it.
        """
        unjudged = self.unjudged_mark
        if unjudged:
            queued.mark &= ~unjudged  # the packet's mark as set by other programs
        if finding is None:
            finding = diagnose(queued, packet, snapshot, evidence, self._kernel, self.sysctls)
        decision = self._policy.decide(queued, packet, snapshot, finding, now)
        raw_rules = self.raw_rules
        spared = raw_rules is not None and raw_rules.spares(queued, packet, snapshot, finding)
        if spared:
            decision = unless_spared(decision)
        verdict = VERDICT_ACCEPT
        mark = None
        if self.mode is Mode.ENFORCE:
            mark = decision.mark
            if decision.drops:
                verdict = VERDICT_DROP
        if unjudged and verdict == VERDICT_ACCEPT:
            mark = queued.mark if mark is None else mark & ~unjudged
        shadow = self._shadow
        differs = None
        if shadow is not None:
            other = shadow.decide(queued, packet, snapshot, finding, now)
            if spared:
                other = unless_spared(other)
            differs = disagreement(decision, other)
        judgment = Judgment(
            queued, packet, snapshot, finding, decision, verdict, mark, differs, lookup_error
        )
        if spared:
            judgment.spared = True
        return judgment


def _apply_shifts(snapshot: FlowSnapshot, packet: Packet | Malformed) -> None:
    """Count both ends of a flow as the sender of its packet does."""
    l4 = packet.l4 if isinstance(packet, Packet) else None
    if isinstance(l4, Segment):
        snapshot.peers = as_sender_counts(snapshot, l4.ack)
