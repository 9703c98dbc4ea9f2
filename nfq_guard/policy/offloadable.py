# SPDX-License-Identifier: MIT
"""Whether a policy drops every INVALID packet that one direction of a flow can bring.

A kernel that is told to drop the rest of a flow's INVALID packets looks at nothing but interface,
addresses and ports. So it may be told only where the policy would drop each of them, whatever
else it carries: whatever its flags, its length, its mark, its reason. Sound, not complete: where
the answer is yes, it is; a no may be too careful.

What counts as fixed: hook, interfaces, addresses, ports, and of a flow that conntrack knows its
translation and the packet's direction in it, which no entry changes while it lives. That it lives
is what the caller has to see to. Its state, status and mark change with any packet, and of a flow
that conntrack does not know an entry may be made at any moment, so these may turn out any way.
"""

from typing import Final, final

from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import FlowSnapshot
from nfq_guard.policy.axes import NameAxis, SpanAxis
from nfq_guard.policy.decision import Action
from nfq_guard.policy.facts import number_of
from nfq_guard.policy.fields import FIELD_BY_NAME, FIELDS, REASONS, Kind
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policy.sets import allowed
from nfq_guard.policy.spans import covers, everything, holds
from nfq_guard.wire.packet import Malformed, Packet, Queued

# Fields of numbers that the kernel's own look at a packet settles.
_OF_KEY: Final = frozenset({"hook", "family", "src", "dst"})
_OF_PORTS: Final = frozenset({"proto", "sport", "dport"})
_OF_ENTRY: Final = frozenset({"nat", "direction", "leak"})
# A header cut short has none of these, and belongs to no flow that could be looked up; whether
# its protocol can be read depends on where it was cut.
_ABSENT_IN_MALFORMED: Final = frozenset(
    {
        "sport", "dport", "tcp_flags", "payload", "distance",
        "nat", "direction", "evidence", "state", "status", "leak",
    }
)  # fmt: skip
# What a TCP segment cannot be, or cannot be while its entry lives.
_NOT_SEGMENT: Final = frozenset({Reason.MALFORMED, Reason.ICMP_UNRELATED, Reason.ICMP_MISMATCH})
_NOT_WITH_ENTRY: Final = _NOT_SEGMENT | {Reason.NO_ENTRY}
_ONLY_MALFORMED: Final = frozenset(REASONS) - {Reason.MALFORMED}
_ANY_FINDING: Final = Finding(Reason.MALFORMED)


@final
class Repeats:
    """Asks one policy; for a few flows a second, not for every packet."""

    def __init__(self, model: PolicyModel) -> None:
        """Make `model` ready."""
        rules = model.rules
        self._all = (1 << len(rules)) - 1
        self._spans: list[tuple[str, SpanAxis, int, int]] = []
        self._names: list[NameAxis] = []
        # Rules that may pass by a packet which meets all that is fixed.
        self._unsure = _bits([rule.rate is not None for rule in rules])
        for field in FIELDS:
            asked = [[one for one in rule.conditions if one.field is field] for rule in rules]
            if field.name == "reason" or not any(asked):
                continue
            if field.kind is Kind.PATTERN:
                self._names.append(NameAxis(field, asked))
            elif field.kind is Kind.MARK:
                self._unsure |= _bits([bool(conditions) for conditions in asked])
            else:
                spans = [allowed(rule, field) for rule in rules]
                possible = _bits([bool(one) for one in spans])
                whole = everything(field.highest)
                certain = _bits([covers(one, whole) for one in spans])
                self._spans.append((field.name, SpanAxis(field, spans), possible, certain))
        takes = [allowed(rule, FIELD_BY_NAME["reason"]) for rule in rules]
        self._by_reason = {
            reason: _bits([holds(spans, number) for spans in takes])
            for number, reason in enumerate(REASONS)
        }
        self._keeps = _bits([rule.action is not Action.DROP for rule in rules])
        self._last = {
            reason: model.on_unknown if reason is Reason.UNSUPPORTED else model.default
            for reason in REASONS
        }

    def all_dropped(self, queued: Queued, packet: Packet, snapshot: FlowSnapshot | None) -> bool:
        """Whether each INVALID TCP packet with this one's interface, addresses and ports is.

        Args:
            queued: The packet as it came.
            packet: A TCP segment.
            snapshot: Its flow, which stays as long as the answer is used; None: it may appear.
        """
        fixed = _OF_KEY | _OF_PORTS
        excluded = _NOT_SEGMENT
        if snapshot is not None:
            fixed |= _OF_ENTRY
            excluded = _NOT_WITH_ENTRY
        if not self._drops(queued, packet, snapshot, fixed, excluded):
            return False
        cut = Malformed("TCP header cut short", packet.family, packet.src, packet.dst, packet.proto)
        fixed = _OF_KEY | _ABSENT_IN_MALFORMED
        return self._drops(queued, cut, None, fixed, _ONLY_MALFORMED)

    def _drops(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        fixed: frozenset[str],
        excluded: frozenset[Reason],
    ) -> bool:
        """Whether all packets are dropped that are like this one in the fields `fixed`."""
        may = must = self._all
        for name, axis, possible, certain in self._spans:
            if name in fixed:
                met = axis.at(number_of(axis.code, queued, packet, snapshot, _ANY_FINDING))
                may &= met
                must &= met
            else:
                may &= possible
                must &= certain
        for names in self._names:
            met = names.at(queued.indev if names.incoming else queued.outdev)
            may &= met
            must &= met
        must &= ~self._unsure
        for reason, takes in self._by_reason.items():
            if reason in excluded:
                continue
            surely = must & takes
            reached = may & takes
            if surely:
                # No packet gets past the first rule that takes all of them.
                reached &= ((surely & -surely) << 1) - 1
            elif self._last[reason] is not Action.DROP:
                return False
            if reached & self._keeps:
                return False
        return True


def _bits(flags: list[bool]) -> int:
    """A bit for each flag that is set, the first one lowest."""
    return sum(1 << number for number, flag in enumerate(flags) if flag)
