# SPDX-License-Identifier: MIT
"""The TCP flows of a replay, each with its packet counts and final state."""

from typing import TypedDict

from nfq_guard.capture.frame import own_number
from nfq_guard.flow import IPS_DST_NAT, IPS_SRC_NAT
from nfq_guard.names import counted
from nfq_guard.replay.stream import Stream
from nfq_guard.replay.words import direction_text, state_name
from nfq_guard.wire.packet import FIN, RST


class ListedFlowRecord(TypedDict):
    """A TCP flow of a replay.

    Attributes:
        flow: The direction of its first packet, as `source > destination`.
        first_frame: Frame of that packet.
        packets: Packets from the end that sent the first one.
        answers: Packets from the other end.
        state: State of its entry at the end of the capture, or when the entry expired; null
            without an entry.
        expired: Whether its entry had expired by the end of the capture.
        began_before: Whether its beginning is not in the capture.
        one_way: Whether the capture has only one end of it, although the other end answered.
        translated: Whether the capture shows the address translation of the flow.
        fin: Whether conntrack accepted a FIN of it.
        rst: Whether conntrack accepted an RST of it.
        renewed: Frame in which it continued with a new entry after its entry had gone; null without
            one. A translating host may have forwarded that packet untranslated.
        invalid: INVALID packets by reason, without those in doubt.
        in_doubt: INVALID packets whose finding is in doubt because of the capture.
    """

    flow: str
    first_frame: int
    packets: int
    answers: int
    state: str | None
    expired: bool
    began_before: bool
    one_way: bool
    translated: bool
    fin: bool
    rst: bool
    renewed: int | None
    invalid: dict[str, int]
    in_doubt: int


def flow_record(stream: Stream, now: float) -> ListedFlowRecord:
    """The record of a flow at `now`, the time of the last frame in seconds of the replay."""
    entry = stream.entry
    one, other = stream.sides
    return ListedFlowRecord(
        flow=direction_text(stream.original),
        first_frame=own_number(stream.first_frame),
        packets=one.packets,
        answers=other.packets,
        state=None if entry is None else state_name(entry.state),
        expired=entry is not None and entry.expires <= now,
        began_before=stream.began_before,
        one_way=stream.one_way,
        translated=entry is not None and bool(entry.status & (IPS_SRC_NAT | IPS_DST_NAT)),
        fin=bool(stream.ended & FIN),
        rst=bool(stream.ended & RST),
        renewed=own_number(stream.renewed) or None,
        invalid={reason.value: count for reason, count in (stream.invalid or {}).items()},
        in_doubt=stream.in_doubt,
    )


def flow_line(found: ListedFlowRecord) -> str:
    """A flow as one line of text."""
    notes = [f"{count} {reason}" for reason, count in found["invalid"].items()]
    if found["in_doubt"]:
        notes.append(f"{found['in_doubt']} INVALID in doubt")
    if found["renewed"] is not None:
        notes.append(f"continued in frame {found['renewed']} after its entry had gone")
    for name, text in (
        ("began_before", "began before the capture"),
        ("one_way", "one way only"),
        ("translated", "translated"),
        ("fin", "FIN"),
        ("rst", "RST"),
    ):
        if found[name]:  # type: ignore[literal-required] # names of the record's own
            notes.append(text)
    state = found["state"] or "no entry"
    expired = " (expired)" if found["expired"] else ""
    sent = counted(found["packets"], "packet")
    return (
        f"{found['flow']}: from frame {found['first_frame']}, {sent} and {found['answers']:,} "
        f"back, {state}{expired}" + "".join(f", {note}" for note in notes)
    )
