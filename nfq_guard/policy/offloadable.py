# SPDX-License-Identifier: MIT
"""Decides whether a policy drops every INVALID packet that one direction of a flow can have.

The kernel drops the further INVALID packets of an offloaded flow by interface, addresses and ports
only. A flow may therefore be offloaded only if the policy would drop each of its packets, whatever
their flags, length, mark or reason, and would heal none: a live flow under forged segments that
loses its window would otherwise stall for as long as they come. Conservative: True is always safe,
False may be a missed opportunity.

The column `depends_on` of the field table shows which fields are the same in all these packets. The
caller must ensure that the conntrack entry stays.
"""

from typing import Final, final

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import Evidence, FlowSnapshot
from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import REASONS, DependsOn, name_of, number_of
from nfq_guard.policy.matcher import CompiledPolicy, Plan, bits_of
from nfq_guard.wire.packet import Malformed, Packet, Queued

_FIXED_IN_SEGMENTS: Final = frozenset({DependsOn.KEY, DependsOn.PROTOCOL, DependsOn.PORTS})
_FIXED_WITH_ENTRY: Final = _FIXED_IN_SEGMENTS | {DependsOn.ENTRY}
_FIXED_WITH_WINDOW: Final = _FIXED_WITH_ENTRY | {DependsOn.WINDOW}
# The flow of a truncated header cannot be looked up, and ports, flags and payload are absent,
# whatever the packet. Whether its protocol can be read depends on where it was truncated.
_FIXED_IN_CUT_HEADERS: Final = frozenset(DependsOn) - {DependsOn.PROTOCOL, DependsOn.HOST}
# Reasons that a TCP segment cannot have, and cannot have while its entry lives.
_NOT_OF_SEGMENTS: Final = frozenset({Reason.MALFORMED, Reason.ICMP_UNRELATED, Reason.ICMP_MISMATCH})
_NOT_WITH_ENTRY: Final = _NOT_OF_SEGMENTS | {Reason.NO_ENTRY}
_NOT_OF_CUT_HEADERS: Final = frozenset(REASONS) - {Reason.MALFORMED}
# A placeholder for `number_of`; fields that depend on the finding are not fixed.
_ANY_FINDING: Final = Finding(Reason.MALFORMED)


@final
class OffloadCheck:
    """Checks flows against one policy; too slow for every packet."""

    def __init__(self, policy: CompiledPolicy) -> None:
        """Check against `policy`; its rates are not counted."""
        self._plans = {reason: _Outcomes(plan) for reason, plan in policy.plans.items()}

    def all_dropped(self, queued: Queued, packet: Packet, snapshot: FlowSnapshot | None) -> bool:
        """Whether each INVALID TCP packet with the same interface, addresses and ports is dropped.

        A packet that a rule heals is not.

        Args:
            queued: The packet as it was queued.
            packet: A TCP segment.
            snapshot: Its flow, which must stay while the result is used; None without an entry,
                which may then appear at any moment.
        """
        fixed, impossible = _FIXED_IN_SEGMENTS, _NOT_OF_SEGMENTS
        if snapshot is not None:
            fixed, impossible = _FIXED_WITH_ENTRY, _NOT_WITH_ENTRY
            if snapshot.evidence is Evidence.BPF:
                fixed = _FIXED_WITH_WINDOW
        if not self._drops(queued, packet, snapshot, fixed, impossible):
            return False
        cut = Malformed("TCP header cut short", packet.family, packet.src, packet.dst, packet.proto)
        return self._drops(queued, cut, None, _FIXED_IN_CUT_HEADERS, _NOT_OF_CUT_HEADERS)

    def _drops(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        fixed: frozenset[DependsOn],
        impossible: frozenset[Reason],
    ) -> bool:
        """Whether `drop` holds for each reason that such a packet can have."""
        return all(
            reason in impossible or outcomes.drop(queued, packet, snapshot, fixed)
            for reason, outcomes in self._plans.items()
        )


@final
class _Outcomes:
    """The decisions that a plan can come to for packets of which only some fields are known."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # Rules that match some of the packets only, even when all their conditions hold.
        self._limited = bits_of([limit is not None for limit in plan.limits])
        self._sparing = bits_of([decision.action is not Action.DROP for decision in plan.decisions])

    def drop(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        fixed: frozenset[DependsOn],
    ) -> bool:
        """Whether all packets equal to this one in the `fixed` fields are dropped, none healed."""
        plan = self._plan
        # Rules that match some of the packets, and rules that match all of them.
        some = every = plan.everything
        for interval in plan.intervals:
            if interval.depends_on in fixed:
                met = interval.at(number_of(interval.code, queued, packet, snapshot, _ANY_FINDING))
                some &= met
                every &= met
            else:
                some &= interval.possible
                every &= interval.certain
        for mark in plan.marks:
            every &= mark.certain
        for name in plan.names:
            met = name.at(name_of(name.code, queued))
            some &= met
            every &= met
        every &= ~self._limited
        if every:
            # No packet gets past the first rule that matches all of them.
            some &= ((every & -every) << 1) - 1
        elif plan.last.action is not Action.DROP:
            return False
        return not some & self._sparing
