# SPDX-License-Identifier: MIT
"""Draws the life of a flow as a ladder between its two ends, at most 80 columns wide."""

from collections.abc import Iterator
from typing import Final

from nfq_guard.conntrack.entry import Key
from nfq_guard.names import bytes_of, counted
from nfq_guard.replay.life import Life, Step
from nfq_guard.replay.stream import Doubt, Proof
from nfq_guard.replay.words import direction_text, flag_letters, gist, state_name
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import ACK, Segment

_WIDTH: Final = 80
_ARROW: Final = 33
_INDENT: Final = "    "
_LEFT: Final = 23
_DISORDER: Final = {
    Doubt.UNSEEN_DATA: "data that is not in the capture",
    Doubt.UNSEEN_WINDOW: "a window that is not in the capture",
    Doubt.UNSEEN_HANDSHAKE: "a handshake that is not whole here",
    Doubt.UNSEEN_REQUEST: "a packet that is not before its answer",
    Doubt.OUT_OF_ORDER: "frames out of their order",
    Doubt.SILENCE: "a clock that was set forward, or frames that are missing",
    Doubt.FRAMES_MISSING: "frames that are missing",
    Doubt.CAPTURE_DROPS: "frames that the capture dropped",
}


def ladder(life: Life, frame: int) -> Iterator[str]:
    """The lines; `frame` is marked.

    Each packet has its frame, its time, an arrow from its sender with flags, relative sequence
    number, length and acknowledgement, and conntrack's verdict.
    """
    if life.left is None:
        return
    left, right = _ends(life.left)
    packets = counted(life.count, "packet")
    title = f"{_INDENT}left {left}, right {right}, {packets}:"
    if len(title) <= _WIDTH:
        yield title
    else:
        yield f"{_INDENT}left {left},"
        yield f"{_INDENT}right {right}, {packets}:"
    proofs = list(life.proofs)
    shown = 0
    for step in life.steps:
        if step.number > shown + 1:
            yield f"{'':>{_LEFT}}... {counted(step.number - shown - 1, 'more packet')}"
        while proofs and proofs[0].frame <= step.frame:
            yield _hole(proofs.pop(0))
        shown = step.number
        yield _rung(life, step, frame)
    yield from map(_hole, proofs)


def _ends(key: Key) -> tuple[str, str]:
    left, _, right = direction_text(key).partition(" > ")
    return left, right


def _rung(life: Life, step: Step, frame: int) -> str:
    sign = ">" if step.frame == frame else " "
    text = _packet(life, step)
    if step.side == 0:
        arrow = f"{text} ".ljust(_ARROW - 1, "-") + ">"
    else:
        arrow = "<" + f" {text}".rjust(_ARROW - 1, "-")
    time = f"{step.now:.4f}"[:10]
    return f"  {sign} {step.frame:>7} {time:>10} {arrow} {_said(step)}".rstrip()


def _packet(life: Life, step: Step) -> str:
    """A packet in short, to fit on an arrow."""
    segment = step.packet.l4
    if not isinstance(segment, Segment):
        return gist(step.packet)[: _ARROW - 3]
    text = f"{flag_letters(segment.flags)} {_number(life, segment.seq, step.side)}"
    if segment.payload_len:
        text += f"+{segment.payload_len}"
    if segment.flags & ACK:
        longer = f"{text} ack {_number(life, segment.ack, 1 - step.side)}"
        if len(longer) <= _ARROW - 3:
            return longer
    return text


def _number(life: Life, number: Seq, side: int) -> int:
    """A relative number; the number itself if its origin is unknown."""
    relative = life.relative(number, side)
    return number if relative is None else relative


def _said(step: Step) -> str:
    if step.reason is not None:
        return f"INVALID {step.reason}" + ("" if step.doubted is None else "?")
    if step.ignored:
        return "ignored"
    return state_name(step.state) or step.ctstate.value


def _hole(proof: Proof) -> str:
    what = _DISORDER[proof.kind]
    if proof.missing:
        what = f"{bytes_of(proof.missing)} not in the capture"
    return f"{'':>{_LEFT}}~~ {what}, by frame {proof.frame}"
