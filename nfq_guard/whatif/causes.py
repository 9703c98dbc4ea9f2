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

# States of a flow that has ended. In any other, valid packets, which have no events, may have kept
# its entry since the last event.
_ENDED: Final = frozenset({TcpState.TIME_WAIT.name, TcpState.CLOSE.name})
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
    expired = gone = False
    if before is not None:
        last_state, age_s = before
        gone = age_s < TCP_TIMEOUTS_S[tcp_state_number(last_state)]
        expired = not gone and last_state in _ENDED
    known = Circumstances(
        expired=expired,
        private=is_private(address_bytes(src)) and is_global(address_bytes(dst)),
        gone=gone,
        unanswered=state == TcpState.SYN_SENT.name,
    )
    detail = detail_of(
        reason,
        tcp_flag_bits(tcp_flags),
        None if direction is None else direction_number(direction),
        None if state is None else TcpState(tcp_state_number(state)),
    )
    return cause_of(Finding(reason, None, detail), known)
