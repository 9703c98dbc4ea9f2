# SPDX-License-Identifier: MIT
"""Explains one frame: its flow before the frame, the check, and the result under other kernels.

The capture is read three times: to find the flow of the frame, to learn from the whole capture how
the flow went on and whether the finding is in doubt, and to follow all flows up to the frame under
the rules of every kernel. Only some packets of a long flow are kept.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.reader import Capture
from nfq_guard.conntrack.bounds import BoundCheck, rst_check, window_checks
from nfq_guard.conntrack.entry import Key, reverse
from nfq_guard.conntrack.kernel_rules import KERNELS, KernelRules
from nfq_guard.conntrack.window import rst_closes_unchecked
from nfq_guard.errors import UsageError
from nfq_guard.finding import BOUNDS, Ignored, Reason
from nfq_guard.flow import PROTO_TCP, CtState, FlowSnapshot, FlowTuple, TcpState
from nfq_guard.glossary import Circumstances
from nfq_guard.names import counted
from nfq_guard.policy.decision import Policy
from nfq_guard.policy.intervals import is_global, is_private
from nfq_guard.replay.life import Life, Origins, flow_key, relative_to
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.seqno import Seq
from nfq_guard.wire.checksum import checksum_ok, checksum_unfinished
from nfq_guard.wire.packet import RST, SYN, Packet, Segment, tuple_of

# The number of first and of last packets before the frame that are shown.
FIRST_SHOWN: Final = 4
LAST_SHOWN: Final = 6

_IGNORED_BY_WINDOW: Final = frozenset({Ignored.OVERSHOOT, Ignored.SEQ_UNDER, Ignored.ACK_UNDER})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The explanation of one frame.

    Attributes:
        file: The capture.
        outcome: The outcome of the frame under the chosen kernel.
        settings: How the capture was replayed.
        first: The first packets of the flow, before this one.
        last: The last packets of the flow before this one.
        between: Number of packets between `first` and `last`.
        before: The flow before the frame; None without a flow.
        expired_s: How long before the frame it had expired; 0 if it had not.
        after: The flow after the frame; None without a flow.
        checks: The bounds that were checked; empty if none was.
        others: The outcome under each generation of kernels, in their order.
        isns: The origin of relative sequence numbers, by direction.
        life: The flow in the whole capture.
        wrong_sum: Whether its transport checksum is wrong.
        unfinished: Whether that checksum is one that the sender left to the NIC to compute.
    """

    file: str
    outcome: Outcome
    settings: ReplaySettings
    first: tuple[Outcome, ...]
    last: tuple[Outcome, ...]
    between: int
    before: FlowSnapshot | None
    expired_s: float
    after: FlowSnapshot | None
    checks: tuple[BoundCheck, ...]
    others: tuple[tuple[str, Outcome], ...]
    isns: tuple[Seq | None, Seq | None]
    life: Life
    wrong_sum: bool
    unfinished: bool

    @property
    def segment(self) -> Segment | None:
        """The TCP segment in the frame."""
        packet = self.outcome.packet
        if isinstance(packet, Packet) and isinstance(packet.l4, Segment):
            return packet.l4
        return None

    @property
    def circumstances(self) -> Circumstances:
        """What the capture shows about the frame's flow besides the finding."""
        packet = self.outcome.packet
        private = None
        if isinstance(packet, Packet):
            private = is_private(packet.src) and is_global(packet.dst)
        return Circumstances(
            expired=self.expired_s > 0,
            seen=bool(self.first),
            private=private,
            twin=self.life.escaped is not None,
            unanswered=None if self.before is None else self.before.state == TcpState.SYN_SENT,
        )

    def relative(self, number: Seq, side: int) -> int | None:
        """A sequence number relative to the first one of that side; None if that is unknown."""
        return relative_to(self.isns[side], number)


def _frames(name: str, number: int) -> Iterator[Frame]:
    """The frames up to `number`, inclusive."""
    capture = Capture(name)
    try:
        for frames in capture.batches():
            for frame in frames:
                yield frame
                if frame.number == number:
                    return
        damage = "" if capture.damage is None else f" ({capture.damage})"
        msg = f"FRAME: {capture.name} has {counted(capture.frames, 'frame')}, not {number}{damage}"
        raise UsageError(msg)
    finally:
        capture.close()


@final
class _History:
    """Collects the packets of one flow."""

    def __init__(self, flow: Key | None) -> None:
        self._flow = flow
        self.first: list[Outcome] = []
        self.last: deque[Outcome] = deque(maxlen=LAST_SHOWN)
        self.count = 0
        self.origins = Origins()

    def takes(self, key: Key | None) -> bool:
        """Whether a packet of this direction belongs to the flow."""
        return key is not None and self._flow in {key, reverse(key)}

    def add(self, outcome: Outcome) -> None:
        """Keep the packet if it is among the first or the last."""
        self.count += 1
        if len(self.first) < FIRST_SHOWN:
            self.first.append(outcome)
        else:
            self.last.append(outcome)

    def learn(self, key: Key, packet: Packet, *, accepted: bool) -> None:
        """Take the origin of relative sequence numbers from a segment, as `Origins.learn`."""
        if isinstance(packet.l4, Segment):
            one, other = (key[0], key[2] >> 16), (key[1], key[2] & 0xFFFF)
            self.origins.learn(one, other, packet.l4, accepted=accepted)


def explain(name: str, number: int, settings: ReplaySettings, policy: Policy) -> Explanation:
    """Follow the capture `name` up to frame `number` and explain that frame.

    Raises:
        CaptureError: The file cannot be read.
        UsageError: The capture has no such frame.
    """
    settings = replace(settings, every=True)
    flow, key = _flow_of(name, number, settings)
    history = _History(key)
    life = Life(key, number)
    settled = _settled(name, number, settings, policy, life)
    broken = settled is not None and _has_bad_checksum(settled)
    chosen = Replayer(settings, policy)
    generations = {
        rules.name: Replayer(replace(settings, kernel=rules), policy)
        for rules in KERNELS.values()
        if rules is not settings.kernel
    }
    before: FlowSnapshot | None = None
    then = 0.0
    outcome: Outcome | None = None
    others: dict[str, Outcome] = {}
    for frame in _frames(name, number):
        target = frame.number == number
        if target and flow is not None:
            before = chosen.table.lookup([flow])[0]
            then = chosen.now
        others = {}
        for generation, replayer in generations.items():
            code = replayer.follow(frame)
            if target:
                others[generation] = replayer.outcome(frame, code)
        code = chosen.follow(frame)
        found = flow_key(chosen)
        if target or history.takes(found):
            outcome = chosen.outcome(frame, code)
            if found is not None and isinstance(outcome.packet, Packet) and history.takes(found):
                passed = outcome.ctstate is not CtState.INVALID and outcome.ignored is None
                history.learn(found, outcome.packet, accepted=passed)
            if not target:
                history.add(outcome)
    assert outcome is not None  # noqa: S101 - _frames ends with this frame or raises
    others[settings.kernel.name] = outcome
    if broken:
        others = {rules: one.if_broken or one for rules, one in others.items()}
        outcome = others[settings.kernel.name]
    if settled is not None:
        outcome.doubted = settled.doubted
    expired_s = 0.0
    if before is not None and settings.sysctls.expires:
        expired_s = max(0.0, chosen.now - then - before.timeout_s)
    if expired_s:
        before = None
    packet = outcome.packet
    wrong = isinstance(packet, Packet) and checksum_ok(packet, chosen.reader.octets) is False
    reason = chosen.table.reason if outcome.ctstate is CtState.INVALID else None
    return Explanation(
        file=name,
        outcome=outcome,
        settings=settings,
        first=tuple(history.first),
        last=tuple(history.last),
        between=history.count - len(history.first) - len(history.last),
        before=before,
        expired_s=expired_s,
        after=None if flow is None else chosen.table.lookup([flow])[0],
        checks=_checks(outcome, before, reason, settings.kernel),
        others=tuple((rules.name, others[rules.name]) for rules in KERNELS.values()),
        isns=_by_direction(history.origins, before, flow),
        life=life,
        wrong_sum=wrong,
        unfinished=wrong and isinstance(packet, Packet) and checksum_unfinished(packet),
    )


def _flow_of(
    name: str, number: int, settings: ReplaySettings
) -> tuple[FlowTuple | None, Key | None]:
    """The tuple of the packet in a frame, and its direction with the tuple before translation."""
    replayer = Replayer(settings)
    for frame in _frames(name, number):
        replayer.follow(frame)
    packet = replayer.reader.packet
    return tuple_of(packet) if isinstance(packet, Packet) else None, flow_key(replayer)


def _has_bad_checksum(outcome: Outcome) -> bool:
    return outcome.finding is not None and outcome.finding.reason is Reason.BAD_CHECKSUM


def _settled(
    name: str, number: int, settings: ReplaySettings, policy: Policy, life: Life
) -> Outcome | None:
    """The outcome of the frame in view of the whole capture; None if it is not INVALID."""
    replayer = Replayer(replace(settings, every=False, watched=True), policy)
    capture = Capture(name)
    found: Outcome | None = None
    try:
        for frames in capture.batches():
            outcomes: list[Outcome] = []
            for frame in frames:
                outcomes += replayer.replay([frame])
                life.follow(replayer, frame.number)
            found = found or _of_frame(outcomes, number)
            life.settle(outcomes)
        replayer.drops = capture.drops
        outcomes = replayer.finish()
        life.finish(replayer)
        life.settle(outcomes)
    finally:
        capture.close()
    return found or _of_frame(outcomes, number)


def _of_frame(outcomes: list[Outcome], number: int) -> Outcome | None:
    return next((one for one in outcomes if one.frame.number == number), None)


def _checks(
    outcome: Outcome, before: FlowSnapshot | None, reason: Reason | None, kernel: KernelRules
) -> tuple[BoundCheck, ...]:
    """The bounds that conntrack checked; `reason` is conntrack's."""
    packet = outcome.packet
    segment = packet.l4 if isinstance(packet, Packet) else None
    if before is None or not isinstance(segment, Segment):
        return ()
    if reason is Reason.RST_OUTSIDE:
        check = rst_check(segment, before)
        return () if check is None else (check,)
    if reason is None and outcome.ignored is None:
        if segment.flags & SYN:
            return ()
        if segment.flags & RST and rst_closes_unchecked(before.state, kernel):
            return ()
    elif reason not in BOUNDS and outcome.ignored not in _IGNORED_BY_WINDOW:
        return ()
    return tuple(window_checks(segment, before))


def _by_direction(
    origins: Origins, before: FlowSnapshot | None, flow: FlowTuple | None
) -> tuple[Seq | None, Seq | None]:
    original = flow if before is None else before.original
    if original is None or original.proto != PROTO_TCP:
        return None, None
    return (
        origins.of((original.src, original.sport)),
        origins.of((original.dst, original.dport)),
    )
