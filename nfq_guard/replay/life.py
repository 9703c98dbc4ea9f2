# SPDX-License-Identifier: MIT
"""The whole life of one flow in a capture: its packets, and what the capture lacks of them.

Of a long flow, the first packets are kept, those around the frame that is explained, the last ones,
and the first of those that open or end the flow or are INVALID.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.conntrack.entry import Key, key_of, reverse
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.finding import Reason
from nfq_guard.flow import CtState
from nfq_guard.replay.doubt import Doubted
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.stream import Proof, Stream
from nfq_guard.seqno import MASK, Seq, add
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Packet, Segment, tuple_of

_FIRST: Final = 4
_BEFORE: Final = 4
_AFTER: Final = 4
_LAST: Final = 4
_MOST_MARKED: Final = 24
# Bounds on the remembered frames of the flow, and on the kept INVALID packets.
_MOST_FRAMES: Final = 100_000
_MOST_INVALID: Final = 1000
# A relative number may be larger than half the space, and hardly as small as minus a quarter of it.
_NEGATIVE_FROM: Final = 0xC0000000


@final
@dataclass(slots=True, kw_only=True)
class Step:
    """One packet of the flow.

    Attributes:
        number: Its number in the flow, from 1.
        frame: Its frame.
        now: Seconds since the first frame.
        side: Its sender: 0 for the end that sent the first packet of the flow in the capture, else
            1.
        packet: The packet.
        ctstate: What iptables would have matched.
        ignored: Whether it left the flow unchanged.
        state: `TcpState` number of the flow after it; 0 without one.
        reason: Why it is INVALID, in view of the whole capture.
        doubted: Why that may be due to the capture.
    """

    number: int
    frame: int
    now: float
    side: int
    packet: Packet
    ctstate: CtState
    ignored: bool
    state: int
    reason: Reason | None = None
    doubted: Doubted | None = None


def flow_key(replayer: Replayer) -> Key | None:
    """The direction of the last packet, with the tuple before translation; None without one."""
    packet = replayer.reader.packet
    if not isinstance(packet, Packet):
        return None
    if isinstance(packet.l4, Segment) and replayer.table.key is not None:
        return replayer.table.key
    wanted = tuple_of(packet)
    if wanted is None:
        return None
    return key_of(wanted.src, wanted.dst, wanted.sport, wanted.dport, wanted.proto)


@final
class Origins:
    """The number from which each end of a flow counts, as far as its segments show it.

    An end is named by its side, or by its address and port.
    """

    def __init__(self) -> None:
        self._isns: dict[object, Seq] = {}

    def learn(self, sender: object, receiver: object, segment: Segment, *, accepted: bool) -> None:
        """Learn from a segment; only one that conntrack accepted can change a known origin."""
        syn = segment.flags & SYN
        if syn and accepted:
            self._isns[sender] = segment.seq
        elif not segment.flags & RST:
            # In a flow that was picked up in the middle, the first byte seen is number 1.
            self._isns.setdefault(sender, segment.seq if syn else add(segment.seq, -1))
        if segment.flags & ACK:
            self._isns.setdefault(receiver, add(segment.ack, -1))

    def of(self, end: object) -> Seq | None:
        """The first number of an end; None if that is unknown."""
        return self._isns.get(end)


def relative_to(origin: Seq | None, number: Seq) -> int | None:
    """How far a sequence number is behind the first one of its end; None if that is unknown."""
    if origin is None:
        return None
    # Data before the origin has a negative number, not one near 2**32.
    gap = (number - origin) & MASK
    return gap - MASK - 1 if gap >= _NEGATIVE_FROM else gap


@final
class Life:
    """Collects the packets of a flow.

    Attributes:
        count: Number of its packets.
        left: Direction of its first packet; None before that.
        invalid: The first of its INVALID packets.
        escaped: First direction of the live flow whose translation the explained packet escaped;
            None if it did not.
    """

    def __init__(self, flow: Key | None, frame: int) -> None:
        """Collect the packets of `flow`, in either direction, around `frame`."""
        self.count = 0
        self.left: Key | None = None
        self.invalid: list[Outcome] = []
        self.escaped: Key | None = None
        self._flow = flow
        self._frame = frame
        self._frames: set[int] = set()
        self._kept: dict[int, Step] = {}
        self._marked = 0
        self._before: deque[Step] = deque(maxlen=_BEFORE)
        self._after = 0
        self._last: deque[Step] = deque(maxlen=_LAST)
        self._stream: Stream | None = None
        # Evidence that puts single packets in doubt, besides the proofs of the stream.
        self._more: list[Proof] = []
        self._origins = Origins()

    def follow(self, replayer: Replayer, frame: int) -> None:
        """Take the last packet that `replayer` followed, if it belongs to the flow."""
        key = flow_key(replayer)
        packet = replayer.reader.packet
        if key is None or not isinstance(packet, Packet):
            return
        if key != self._flow and reverse(key) != self._flow:
            return
        if self.left is None:
            self.left = key
        table = replayer.table
        side = 0 if key == self.left else 1
        self.count += 1
        if len(self._frames) < _MOST_FRAMES:
            self._frames.add(frame)
        step = Step(
            number=self.count,
            frame=frame,
            now=replayer.now,
            side=side,
            packet=packet,
            ctstate=CTSTATES[table.ctstate],
            ignored=table.ignored is not None,
            state=table.state,
        )
        if isinstance(packet.l4, Segment):
            accepted = step.ctstate is not CtState.INVALID and not step.ignored
            self._origins.learn(side, 1 - side, packet.l4, accepted=accepted)
        self._keep(step)
        if frame == self._frame:
            self._stream = replayer.streams.stream if table.key is not None else None

    def _keep(self, step: Step) -> None:
        if step.frame == self._frame:
            for earlier in self._before:
                self._kept[earlier.number] = earlier
            self._kept[step.number] = step
            return
        if step.number <= _FIRST:
            self._kept[step.number] = step
        elif self._marked < _MOST_MARKED and _is_marked(step):
            self._marked += 1
            self._kept[step.number] = step
        elif step.frame > self._frame and self._after < _AFTER:
            self._after += 1
            self._kept[step.number] = step
        if step.frame < self._frame:
            self._before.append(step)
        self._last.append(step)

    def relative(self, number: Seq, side: int) -> int | None:
        """A sequence number relative to the first one of an end; None if that is unknown."""
        return relative_to(self._origins.of(side), number)

    def finish(self, replayer: Replayer) -> None:
        """Evaluate the flow after the last frame that `replayer` followed."""
        for one in replayer.streams.escapes.found:
            if one.frame == self._frame:
                self.escaped = one.of.original
        for step in self._last:
            self._kept[step.number] = step

    @property
    def proofs(self) -> list[Proof]:
        """The first proofs that frames are missing or out of order."""
        known = () if self._stream is None else self._stream.proofs
        more = [proof for proof in self._more if proof not in known]
        return sorted((*known, *more), key=_frame_of)

    @property
    def steps(self) -> list[Step]:
        """The packets that are kept, in order."""
        return [self._kept[number] for number in sorted(self._kept)]

    def settle(self, outcomes: list[Outcome]) -> None:
        """Update the kept INVALID packets in view of the whole capture."""
        if not outcomes:
            return
        steps = {step.frame: step for step in (*self._kept.values(), *self._before, *self._last)}
        for outcome in outcomes:
            number = outcome.frame.number
            if number in self._frames and len(self.invalid) < _MOST_INVALID:
                self.invalid.append(outcome)
            step = steps.get(number)
            if step is not None and outcome.finding is not None:
                step.ctstate = CtState.INVALID
                step.reason = outcome.finding.reason
                step.doubted = outcome.doubted
                proof = None if outcome.doubted is None else outcome.doubted.proof
                if proof is not None and proof not in self._more:
                    self._more.append(proof)


def _is_marked(step: Step) -> bool:
    segment = step.packet.l4
    if step.ctstate is CtState.INVALID:
        return True
    return isinstance(segment, Segment) and segment.flags & (SYN | FIN | RST) != 0


def _frame_of(proof: Proof) -> int:
    return proof.frame
