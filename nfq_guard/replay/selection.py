# SPDX-License-Identifier: MIT
"""Selects the outcomes to show, by reason and by flow."""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.errors import UsageError
from nfq_guard.finding import Reason
from nfq_guard.names import endpoint_parts
from nfq_guard.replay.outcome import Outcome
from nfq_guard.wire.packet import Packet, tuple_of

_EXAMPLE: Final = "10.0.0.1:40000-10.0.0.2:80 or [fd00::1]:40000-[fd00::2]:80"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFilter:
    """Two ends, in either order; a port of None stands for any.

    Attributes:
        one: Address and port of an end.
        other: Address and port of the other end.
    """

    one: tuple[bytes, int | None]
    other: tuple[bytes, int | None]

    def matches(self, outcome: Outcome) -> bool:
        """Whether the packet belongs to the flow; an ICMP error by the packet that it quotes."""
        packet = outcome.packet
        wanted = tuple_of(packet) if isinstance(packet, Packet) else None
        if wanted is None:
            return False
        ends = ((wanted.src, wanted.sport), (wanted.dst, wanted.dport))
        return self._are(ends[0], ends[1]) or self._are(ends[1], ends[0])

    def _are(self, first: tuple[bytes, int], second: tuple[bytes, int]) -> bool:
        return _is(self.one, first) and _is(self.other, second)


def _is(wanted: tuple[bytes, int | None], end: tuple[bytes, int]) -> bool:
    return wanted[0] == end[0] and wanted[1] in {None, end[1]}


def parse_flow(text: str) -> FlowFilter:
    """Parse `A:p-B:p`; IPv6 addresses are in brackets, a port may be absent or `*`.

    Raises:
        UsageError: `text` has another form.
    """
    one, _, other = text.partition("-")
    try:
        return FlowFilter(one=endpoint_parts(one), other=endpoint_parts(other))
    except ValueError:
        raise UsageError(f"--flow: expected {_EXAMPLE}, found {text!r}") from None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The outcomes to show.

    Attributes:
        reasons: Only these; empty for all.
        flow: Only this flow; None for all.
    """

    reasons: frozenset[Reason] = frozenset()
    flow: FlowFilter | None = None

    def takes(self, outcome: Outcome) -> bool:
        """Whether `outcome` is shown."""
        if self.reasons and (outcome.finding is None or outcome.finding.reason not in self.reasons):
            return False
        return self.flow is None or self.flow.matches(outcome)
