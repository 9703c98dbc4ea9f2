# SPDX-License-Identifier: MIT
"""An explanation as a JSON object."""

from typing import TypedDict

from nfq_guard.conntrack.bounds import BoundCheck, Point
from nfq_guard.flow import FlowSnapshot, Peer
from nfq_guard.glossary import finding_sentence
from nfq_guard.names import direction, tuple_ends
from nfq_guard.replay.explanation import Explanation
from nfq_guard.replay.frame_record import BreachRecord, FrameRecord, breach_object, record
from nfq_guard.replay.life import Life, Step
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.words import direction_text, flag_letters, state_name
from nfq_guard.wire.packet import ACK, Segment


class PeerRecord(TypedDict):
    """What conntrack keeps of one end of a TCP flow (kernel.md 1).

    Attributes:
        td_end: Highest sequence number sent, plus one for SYN and FIN.
        td_maxend: Right edge of the window: the highest sequence number that the other end accepts.
        td_maxwin: Largest window offered, in bytes.
        td_maxack: Highest acknowledgement number sent.
        td_scale: Window scale, as a shift.
        flags: The kernel's `IP_CT_TCP_FLAG_` bits.
    """

    td_end: int
    td_maxend: int
    td_maxwin: int
    td_maxack: int
    td_scale: int
    flags: int


class PeersRecord(TypedDict):
    """Both ends of a TCP flow; null if the flow is not TCP.

    Attributes:
        original: The end that opened the flow.
        reply: The other end.
    """

    original: PeerRecord | None
    reply: PeerRecord | None


class FlowRecord(TypedDict):
    """The flow before the packet.

    Attributes:
        original: Source and destination of its original direction.
        direction: Direction of the packet: `original` or `reply`.
        state: Its TCP state.
        status: Its `IPS_` bits.
        timeout_s: Time left before it expires.
        peers: The windows of both ends.
    """

    original: str
    direction: str
    state: str | None
    status: int
    timeout_s: float
    peers: PeersRecord


class PointRecord(TypedDict):
    """A sequence number with its name.

    Attributes:
        name: Its name, such as `td_end`.
        seq: The number.
        relative: The number relative to the first one of its end; null if that is unknown.
    """

    name: str
    seq: int
    relative: int | None


class BoundRecord(TypedDict):
    """One bound of the window, checked against the packet.

    Attributes:
        bound: The bound.
        actual: The number in the packet.
        limit: The number that it is compared with.
        holds: Whether the packet is within the bound.
        distance: Bytes by which the packet exceeds the bound, else 0.
        room: Bytes left within the bound, else 0.
    """

    bound: str
    actual: PointRecord
    limit: PointRecord
    holds: bool
    distance: int
    room: int


class KernelRecord(TypedDict):
    """The result for the packet under the rules of one kernel.

    Attributes:
        kernel: The rules, by the first kernel that has them.
        ctstate: As in the frame.
        ignored: As in the frame.
        reason: As in the frame.
        breach: As in the frame.
        says: The result as a sentence.
    """

    kernel: str
    ctstate: str | None
    ignored: bool
    reason: str | None
    breach: BreachRecord | None
    says: str | None


class StepRecord(TypedDict):
    """A packet of the flow.

    Attributes:
        number: Its number in the flow, from 1; omitted packets leave gaps.
        frame: Its frame.
        sender: 0 for the end that sent the first packet of the flow in the capture, else 1.
        flags: TCP flags by their letters; null if it is not TCP.
        seq: Relative sequence number; null if it is not TCP, or if the first one is unknown.
        ack: Relative acknowledgement number; null without the flag.
        length: Bytes of data; null if it is not TCP.
        ctstate: As in the frame.
        ignored: As in the frame.
        state: State of the flow after it.
        reason: As in the frame.
        doubt: As in the frame.
    """

    number: int
    frame: int
    sender: int
    flags: str | None
    seq: int | None
    ack: int | None
    length: int | None
    ctstate: str
    ignored: bool
    state: str | None
    reason: str | None
    doubt: str | None


class HoleRecord(TypedDict):
    """A place where the capture differs from what the peers exchanged.

    Attributes:
        kind: The kind of difference, named as in `doubt`.
        frame: The frame that shows it.
        missing: Bytes that are not in the capture; 0 if none or unknown.
    """

    kind: str
    frame: int
    missing: int


class LifeRecord(TypedDict):
    """The flow in the whole capture.

    Attributes:
        flow: Its first packet in the capture, as `source > destination`.
        packets: Number of its packets.
        escaped: The live flow whose translation this packet escaped; null if it did not.
        steps: The first packets, those around the frame, the last ones, and the first of those that
            open or end the flow or are INVALID.
        holes: The first places where frames are missing or out of order.
    """

    flow: str
    packets: int
    escaped: str | None
    steps: list[StepRecord]
    holes: list[HoleRecord]


class ExplanationRecord(FrameRecord):
    """What `explain` adds to the fields of a frame.

    Attributes:
        kernel: The kernel whose rules were used.
        kernel_doubt: Why the requested kernel may follow other rules; null if it follows these.
        flow: The flow before the packet; null without a flow.
        expired_s: Seconds since the flow had expired; null if it had not.
        history: Frames of the flow before the packet: the first and the last ones.
        history_left_out: Frames of the flow between those.
        bounds: The bounds of the window.
        kernels: The results under the rules of every kernel, including `kernel`.
        life: The flow in the whole capture; null without a flow.
    """

    kernel: str
    kernel_doubt: str | None
    flow: FlowRecord | None
    expired_s: float | None
    history: list[FrameRecord]
    history_left_out: int
    bounds: list[BoundRecord]
    kernels: list[KernelRecord]
    life: LifeRecord | None


def explanation_object(explanation: Explanation) -> ExplanationRecord:
    """The record of the frame as in `replay`, with the fields that `explain` adds."""
    told = (*explanation.first, *explanation.last)
    return {
        **record(explanation.outcome, (explanation.file,)),
        "file": explanation.file,
        "kernel": explanation.settings.kernel.name,
        "kernel_doubt": explanation.settings.kernel_doubt or None,
        "flow": None if explanation.before is None else _flow(explanation.before),
        "expired_s": round(explanation.expired_s, 6) or None,
        "history": [record(outcome, (explanation.file,)) for outcome in told],
        "history_left_out": explanation.between,
        "bounds": [_bound(check, explanation) for check in explanation.checks],
        "kernels": [_generation(name, outcome) for name, outcome in explanation.others],
        "life": _life(explanation.life),
    }


def _life(life: Life) -> LifeRecord | None:
    if life.left is None:
        return None
    return {
        "flow": direction_text(life.left),
        "packets": life.count,
        "escaped": None if life.escaped is None else direction_text(life.escaped),
        "steps": [_step(life, step) for step in life.steps],
        "holes": [
            {"kind": proof.kind.value, "frame": proof.frame, "missing": proof.missing}
            for proof in life.proofs
        ],
    }


def _step(life: Life, step: Step) -> StepRecord:
    l4 = step.packet.l4
    segment = l4 if isinstance(l4, Segment) else None
    acknowledges = segment is not None and segment.flags & ACK
    return {
        "number": step.number,
        "frame": step.frame,
        "sender": step.side,
        "flags": None if segment is None else flag_letters(segment.flags),
        "seq": None if segment is None else life.relative(segment.seq, step.side),
        "ack": life.relative(segment.ack, 1 - step.side) if segment and acknowledges else None,
        "length": None if segment is None else segment.payload_len,
        "ctstate": step.ctstate.value,
        "ignored": step.ignored,
        "state": state_name(step.state),
        "reason": None if step.reason is None else step.reason.value,
        "doubt": None if step.doubted is None else step.doubted.kind.value,
    }


def _flow(before: FlowSnapshot) -> FlowRecord:
    original, reply = before.peers or (None, None)
    return {
        "original": tuple_ends(before.original),
        "direction": direction(before.direction),
        "state": state_name(before.state),
        "status": before.status,
        "timeout_s": before.timeout_s,
        "peers": {"original": _peer(original), "reply": _peer(reply)},
    }


def _peer(peer: Peer | None) -> PeerRecord | None:
    if peer is None:
        return None
    return {
        "td_end": peer.td_end,
        "td_maxend": peer.td_maxend,
        "td_maxwin": peer.td_maxwin,
        "td_maxack": peer.td_maxack,
        "td_scale": peer.td_scale,
        "flags": peer.flags,
    }


def _point(point: Point, explanation: Explanation) -> PointRecord:
    return {
        "name": point.name,
        "seq": point.seq,
        "relative": explanation.relative(point.seq, point.side),
    }


def _bound(check: BoundCheck, explanation: Explanation) -> BoundRecord:
    return {
        "bound": check.bound,
        "actual": _point(check.actual, explanation),
        "limit": _point(check.limit, explanation),
        "holds": check.holds,
        "distance": max(0, -check.room),
        "room": max(0, check.room),
    }


def _generation(name: str, outcome: Outcome) -> KernelRecord:
    finding = outcome.finding
    return {
        "kernel": name,
        "ctstate": outcome.ctstate,
        "ignored": outcome.ignored is not None,
        "reason": None if finding is None else finding.reason,
        "breach": None if finding is None else breach_object(finding.breach),
        "says": None if finding is None else finding_sentence(finding) or None,
    }
