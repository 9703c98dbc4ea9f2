# SPDX-License-Identifier: MIT
"""Parses conntrack's log texts about packets, in the spelling of every kernel (kernel.md 1.12).

Conntrack ends each text with a space. Without it the text was truncated, possibly within the number
at its end.
"""

import re
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import TcpState
from nfq_guard.seqno import Seq, add

_PREFIX: Final = re.compile(r"nf_ct_[a-z0-9_]+: ?(?:nf_ct_(?:sctp|dccp): )?")

# Each of these, in its place in the text, identifies a reason. Kernels before 6.1 print the long
# form of a bound, without a number.
_REASONS: Final = (
    (re.compile(r"SEQ is over (?:upper bound \d+|the upper bound)"), Reason.SEQ_OVER),
    (re.compile(r"ACK is over (?:upper bound \d+|the upper bound)"), Reason.ACK_OVER),
    (re.compile(r"SEQ is under the lower bound"), Reason.SEQ_UNDER),
    (re.compile(r"ACK is under the lower bound"), Reason.ACK_UNDER),
    (re.compile(r"invalid rst", re.IGNORECASE), Reason.RST_OUTSIDE),
    (re.compile(r"invalid new"), Reason.NO_ENTRY),
    (re.compile(r"invalid state"), Reason.BAD_TRANSITION),
    (re.compile(r"packet \(index \d+\) in dir \d+ invalid"), Reason.BAD_TRANSITION),
    (re.compile(r"invalid tcp flag combination"), Reason.BAD_FLAGS),
    (re.compile(r"(?:invalid|bad) checksum coverage"), Reason.MALFORMED),
    (re.compile(r"reserved packet type"), Reason.MALFORMED),
    (re.compile(r"not picking up existing connection"), Reason.NO_ENTRY),
    (re.compile(r"bad (?:hw icmp )?checksum|ICMPv6 checksum failed|bad CRC"), Reason.BAD_CHECKSUM),
    (re.compile(r"verification tag check failed"), Reason.BAD_TAG),
    (re.compile(r"Invalid, old_state"), Reason.BAD_TRANSITION),
    (re.compile(r"do_basic_checks failed"), Reason.MALFORMED),
    (
        re.compile(r"checksum missing|truncated|short (?:packet|redirect)|invalid icmp type"),
        Reason.MALFORMED,
    ),
    (re.compile(r"invalid saddr or hoplimit for redirect"), Reason.MALFORMED),
    (re.compile(r"redirect without options"), Reason.ICMP_UNRELATED),
    (re.compile(r"outer daddr \S+ != inner"), Reason.ICMP_MISMATCH),
)
# Texts about a packet that passes with its flow.
_IGNORED: Final = (
    (
        re.compile(r"packet \(index \d+\) in dir \d+ ignored|invalid packet (?:ignored|$)"),
        Ignored.STATE,
    ),
    (re.compile(r"ignored ACK under lower bound"), Ignored.ACK_UNDER),
    (re.compile(r"SEQ is under lower bound"), Ignored.SEQ_UNDER),
    (re.compile(r"challenge-ack ignored"), Ignored.CHALLENGE_ACK),
)
# Additional texts about a packet that does not pass.
_BESIDE: Final = re.compile(r"timeout to ")
# Of a helper, such as that of SIP, about a packet that it drops.
_DROPPED: Final = re.compile(r"nf_ct_\S{1,16}: dropping packet: ")
_LIMIT: Final = re.compile(r"over upper bound (\d{1,10}) ")
_EXCESS: Final = re.compile(r"(\d{1,10}) bytes more than expected")
_TRANSITION: Final = re.compile(
    r"packet \(index ([0-5])\) in dir ([01]) invalid, state ([A-Z0-9_]+) "
)
_STATES: Final = {state.name: int(state) for state in TcpState}


@final
@dataclass(frozen=True, slots=True)
class Logged:
    """Why conntrack calls a packet INVALID, by its own log.

    Attributes:
        reason: The reason; None for an unknown text or one that was truncated too early.
        limit: The last number that passes, if the text has the broken bound.
        excess: Bytes from `td_maxend` to the end of the segment, plus one, if the text has that
            instead.
        transition: Direction, class and state of a segment that the state table forbids, if the
            text has them.
    """

    reason: Reason | None
    limit: Seq | None = None
    excess: int | None = None
    transition: tuple[int, int, int] | None = None


_UNKNOWN: Final = Logged(None)


def parse_log(text: str, *, old_segments_pass: bool) -> Logged | None:
    """Parse one text from NFLOG; None if it does not say why a packet is INVALID.

    Args:
        text: The prefix of the NFLOG message, with the space at its end.
        old_segments_pass: `KernelRules.old_segments_pass`: whether a segment that is "more than
            expected" passes. Every other text has the same meaning on all kernels.
    """
    prefix = _PREFIX.match(text)
    if prefix is None or is_dropped(text):
        return None
    said = text[prefix.end() :]
    if _BESIDE.search(said) or _ignored(said) is not None:
        return None
    excess = _EXCESS.match(said)
    if excess is not None:
        if old_segments_pass:
            return None
        return Logged(Reason.SEQ_OVER, excess=int(excess[1]))
    for pattern, reason in _REASONS:
        if pattern.match(said):
            return Logged(reason, _limit(said), None, _transition(said))
    return _UNKNOWN


def parse_ignored(text: str) -> Ignored | None:
    """Why a packet passes with its flow without being taken into account; None for other texts.

    "More than expected" is `Ignored.OVERSHOOT` on kernels with `KernelRules.old_segments_pass`.
    """
    prefix = _PREFIX.match(text)
    if prefix is None:
        return None
    said = text[prefix.end() :]
    return Ignored.OVERSHOOT if _EXCESS.match(said) else _ignored(said)


def is_conntrack_log(text: str) -> bool:
    """Whether a text begins like those of conntrack."""
    return _PREFIX.match(text) is not None or is_dropped(text)


def is_dropped(text: str) -> bool:
    """Whether a text is that of a helper about a packet that it drops, which is not INVALID."""
    return _DROPPED.match(text) is not None


def _ignored(said: str) -> Ignored | None:
    return next((case for pattern, case in _IGNORED if pattern.search(said)), None)


def _limit(said: str) -> Seq | None:
    found = _LIMIT.search(said)
    if found is None or int(found[1]) > 0xFFFFFFFF:
        return None
    return add(Seq(int(found[1])), -1)  # the text has the first number that fails


def _transition(said: str) -> tuple[int, int, int] | None:
    found = _TRANSITION.match(said)
    state = None if found is None else _STATES.get(found[3])
    if found is None or state is None:
        return None
    return int(found[2]), int(found[1]), state
