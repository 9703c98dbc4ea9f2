# SPDX-License-Identifier: MIT
"""Determines the cause behind a recorded event from the event and earlier ones."""

from typing import Final

from nfq_guard.conntrack.sysctls import TCP_TIMEOUTS_S
from nfq_guard.diagnose import detail_of
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import TcpState
from nfq_guard.glossary import Cause, Circumstances, cause_of
from nfq_guard.names import (
    DirectionName,
    address_bytes,
    direction_number,
    tcp_flag_bits,
    tcp_state_number,
)
from nfq_guard.policy.intervals import is_global, is_private

_CAUSED: Final = frozenset({Reason.NO_ENTRY, Reason.BAD_TRANSITION, Reason.SEQ_OVER})


def cause_in_event(
    reason: Reason,
    tcp_flags: str | None,
    direction: DirectionName | None,
    state: str | None,
    src: str | None,
    dst: str | None,
    *,
    before: tuple[str, float] | None = None,
) -> Cause | None:
    """The cause of one event, from its fields.

    Args:
        reason: The reason.
        tcp_flags: The flags of the segment.
        direction: The direction of the segment in its flow.
        state: The state of that flow.
        src: Its source.
        dst: Its destination.
        before: The last seen state of the same flow, and the seconds since.
    """
    if reason not in _CAUSED or tcp_flags is None or src is None or dst is None:
        return None
    expired = None
    if before is not None:
        expired = before[1] >= TCP_TIMEOUTS_S[tcp_state_number(before[0])]
    known = Circumstances(
        expired=expired,
        private=is_private(address_bytes(src)) and is_global(address_bytes(dst)),
        gone=None if expired is None else not expired,
        unanswered=state == TcpState.SYN_SENT.name,
    )
    detail = detail_of(
        reason,
        tcp_flag_bits(tcp_flags),
        None if direction is None else direction_number(direction),
        None if state is None else TcpState(tcp_state_number(state)),
    )
    return cause_of(Finding(reason, None, detail), known)
