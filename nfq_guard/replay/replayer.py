# SPDX-License-Identifier: MIT
"""Follows a capture with the model of conntrack and judges the INVALID packets.

    replayer = Replayer(ReplaySettings(), policy)
    for frames in capture.batches():
        for outcome in replayer.replay(frames):
            ...
    for outcome in replayer.finish():
        ...

Each frame is decoded to an IP packet, fragments are reassembled, and each whole packet goes through
the flow table. Only packets to be shown become an `Outcome`. An outcome is held until later frames
have shown whether the capture is complete there (`replay.doubt`, `replay.checksums`); outcomes are
returned in the order of their frames.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import ETHERNET, LINKS, LINUX_SLL, LINUX_SLL2, NO_PACKET
from nfq_guard.capture.tunnels import MOST_NESTED, inner_of
from nfq_guard.conntrack.entry import key_of
from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import CT_INVALID, CT_UNTRACKED, CTSTATES, FlowTable
from nfq_guard.engine import Engine, Mode
from nfq_guard.finding import Finding, Ignored
from nfq_guard.flow import IPV4, PROTO_TCP, CtState, Evidence, FlowSnapshot, Hook
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.replay.checksums import ChecksumJudge, ChecksumMode, Suspect
from nfq_guard.replay.copies import FIRST, TRANSLATED, Copies
from nfq_guard.replay.doubt import Doubted, Place, doubt_of, place_of
from nfq_guard.replay.streams import DEFAULT_WSCALE, Doubt, Proof, Streams
from nfq_guard.seqno import Seq
from nfq_guard.wire.fragments import Reassembler, is_fragment
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import (
    CHECKSUM_GOOD,
    CHECKSUM_UNVERIFIED,
    Malformed,
    Packet,
    Queued,
    Segment,
)
from nfq_guard.wire.tcp import options_are_cut

# What `Replayer.follow` answers when conntrack would see no packet in a frame.
CT_NONE: Final = -1

DEFAULT_CAPACITY: Final = 262_144
# Outcomes held at most; then the oldest is settled by what is known.
MOST_HELD: Final = 20_000

# Why a frame holds no packet for conntrack; fixed phrases.
NOT_IP: Final = "no IP packet"
UNKNOWN_LINK: Final = "unknown link type"
FRAGMENT_WAITS: Final = "a fragment whose datagram is not whole"
DROPPED_BEFORE: Final = "an IP header that the kernel throws away"
COPIED: Final = "a copy of an earlier frame"
SNAPPED: Final = "the capture ends inside the headers"

# Problems of IP headers themselves (wire.ip), which the IP layer finds first.
_DROPPED_BY_IP: Final = frozenset(
    {
        "IP version neither 4 nor 6",
        "IPv4 header cut short",
        "IPv4 header length below 5",
        "IPv4 header longer than the packet",
        "IPv6 header cut short",
    }
)
# Captures of `any`, which show a packet on each interface that it passes.
_COOKED: Final = frozenset({LINUX_SLL, LINUX_SLL2})
_PREROUTING: Final = int(Hook.PREROUTING)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How to replay.

    Attributes:
        kernel: The conntrack rules to follow.
        kernel_doubt: Why the kernel that was asked for may follow others; empty if there is none.
        sysctls: How that kernel is set.
        checksums: What a wrong checksum means.
        capacity: Most flows held at once (`conntrack.table.FlowTable`).
        nat_status: `flow.IPS_SRC_NAT` and `IPS_DST_NAT` bits that every flow is taken to
            have; a capture does not tell how the host translated.
        every: Whether `Replayer.replay` gives every frame, not the INVALID ones only.
        strict: Whether the capture counts as complete, so that no finding is in doubt.
        decapsulate: Whether the packets inside tunnels are followed too.
        assumed_wscale: Window scale of streams whose beginning is not in the file.
        settle_after_s: How long outcomes are held at most, seconds of capture; 0 for the whole
            capture.
    """

    kernel: KernelRules = KERNEL_6_1
    kernel_doubt: str = ""
    sysctls: Sysctls = DEFAULT_SYSCTLS
    checksums: ChecksumMode = ChecksumMode.AUTO
    capacity: int = DEFAULT_CAPACITY
    nat_status: int = 0
    every: bool = False
    strict: bool = False
    decapsulate: bool = False
    assumed_wscale: int = DEFAULT_WSCALE
    settle_after_s: float = 0.0


@final
@dataclass(init=False, slots=True)
class Outcome:
    """The outcome of one frame.

    Attributes:
        frame: The frame; of a datagram in fragments the one that completed it.
        packet: The packet in it, put together; None if there is none.
        ctstate: What iptables would have matched; None where conntrack would see no packet.
        absent: Why there is no packet for conntrack, a fixed phrase; else empty.
        ignored: Why the packet left its flow unchanged; None where it did not.
        snapshot: Its flow after the packet; None without a flow, and for packets that are not
            judged.
        finding: Why it is INVALID.
        decision: The decision of the policy.
        state: `TcpState` number of its flow after it; 0 without one.
        direction: In its flow; 0 original, 1 reply.
        now: Seconds since the first frame of the replay.
        doubted: Why the finding may be due to the capture; None where it stands.
        place: The segment's place in its stream, while the outcome is held.
        suspect: Its checksum, while it is uncertain whether it is a broken one.
        if_broken: The outcome if it is, while that is uncertain.
    """

    frame: Frame
    packet: Packet | Malformed | None
    ctstate: CtState | None
    absent: str
    ignored: Ignored | None
    snapshot: FlowSnapshot | None
    finding: Finding | None
    decision: Decision | None
    state: int
    direction: int
    now: float
    doubted: Doubted | None
    place: Place | None
    suspect: Suspect | None
    if_broken: "Outcome | None"

    def __init__(
        self,
        frame: Frame,
        packet: Packet | Malformed | None,
        ctstate: CtState | None,
        now: float,
        absent: str = "",
        ignored: Ignored | None = None,
        snapshot: FlowSnapshot | None = None,
        finding: Finding | None = None,
        decision: Decision | None = None,
        state: int = 0,
        direction: int = 0,
    ) -> None:
        self.frame = frame
        self.packet = packet
        self.ctstate = ctstate
        self.absent = absent
        self.ignored = ignored
        self.snapshot = snapshot
        self.finding = finding
        self.decision = decision
        self.state = state
        self.direction = direction
        self.now = now
        self.doubted = None
        self.place = None
        self.suspect = None
        self.if_broken = None


@final
class _Undecided:
    """A policy for replays in which only the reason is of interest."""

    shadow = None

    def __init__(self) -> None:
        self._decision = Decision(Action.ALLOW, "")

    def decide(
        self,
        queued: Queued,  # noqa: ARG002 - the protocol's
        packet: Packet | Malformed,  # noqa: ARG002 - as above
        snapshot: FlowSnapshot | None,  # noqa: ARG002 - as above
        finding: Finding,  # noqa: ARG002 - as above
        now: float,  # noqa: ARG002 - as above
    ) -> Decision:
        """Allow."""
        return self._decision


@final
class Replayer:
    """One replay.

    Attributes:
        table: The flows.
        frames: Frames followed.
        packets: Packets that conntrack saw.
        by_ctstate: How many of them, by `conntrack.table` code.
        ignored: How many of them were ignored.
        without_packet: Frames in which conntrack sees no packet, by reason.
        unknown_links: Link types that we cannot read, each with the first frame of it.
        packet: The packet of the last frame; None if it holds none.
        absent: Why it holds none; a fixed phrase, or empty.
        now: Seconds since the first frame, at the last one.
        streams: What the capture shows of each TCP stream.
        checksums: Judges transport checksums, and counts the wrong ones.
        drops: Frames that the capture itself reports as dropped; set by the reader's owner.
        disordered: Frames with a time before that of the frame before them.
        cut_options: TCP segments in whose options the capture ends.
        copies: Looks for frames that show a packet again; those are not judged.
        tunnels: Packets that carry another packet, by the name of the tunnel.
        translations: Flows whose address translation the capture shows.
    """

    def __init__(self, settings: ReplaySettings, policy: Policy | None = None) -> None:
        """Begin with an empty table; without a policy nothing is decided."""
        self._settings = settings
        self._policy = policy
        self.checksums = ChecksumJudge(settings.checksums)
        self.streams = Streams(settings.capacity, settings.assumed_wscale)
        self.drops = 0
        self.disordered = 0
        self.cut_options = 0
        self.copies = Copies()
        self.tunnels: dict[str, int] = {}
        self._inner: Frame | None = None
        self.translations = 0
        self._held: deque[Outcome] = deque()
        self._suspect: Suspect | None = None
        self._last_ns = 0
        self._late = False
        self._fragments = Reassembler()
        self._start_ns = -1
        self._octets = b""
        self._checksum_ok: bool | None = None
        self.table = FlowTable(settings.kernel, settings.sysctls, settings.capacity)
        self._engine = Engine(
            policy=_Undecided() if policy is None else policy,
            flows=self.table,
            mode=Mode.ENFORCE,
            kernel=settings.kernel,
            sysctls=settings.sysctls,
        )
        self.frames = 0
        self.by_ctstate = [0] * len(CTSTATES)
        self.ignored = 0
        self.without_packet: dict[str, int] = {}
        self.unknown_links: dict[int, int] = {}
        self.packet: Packet | Malformed | None = None
        self.absent = ""
        self.now = 0.0

    @property
    def decapsulates(self) -> bool:
        """Whether the packets inside tunnels are followed too."""
        return self._settings.decapsulate

    @property
    def assumes_nat(self) -> bool:
        """Whether every flow is taken to be translated."""
        return self._settings.nat_status != 0

    @property
    def packets(self) -> int:
        """Packets that conntrack saw."""
        return sum(self.by_ctstate)

    def replay(self, frames: list[Frame]) -> list[Outcome]:
        """Follow frames in order.

        Returns:
            The outcomes that are settled by now: INVALID packets, or all frames if the settings
            say so.
        """
        every = self._settings.every
        held = self._held
        for frame in frames:
            code = self.follow(frame)
            if code == CT_INVALID or every or self._suspect is not None:
                held.append(self.outcome(frame, code))
            if self._inner is not None and self._settings.decapsulate:
                self._follow_inner(held)
        shown: list[Outcome] = []
        after = self._settings.settle_after_s
        while held and (len(held) > MOST_HELD or (after and self.now - held[0].now > after)):
            self._settle(held.popleft(), shown)
        return shown

    def _follow_inner(self, held: deque[Outcome]) -> None:
        """Follow the packets inside the last one, as many as are nested."""
        for _ in range(MOST_NESTED):
            frame = self._inner
            if frame is None:
                return
            code = self.follow(frame)
            self.frames -= 1
            if code == CT_INVALID or self._settings.every or self._suspect is not None:
                held.append(self.outcome(frame, code))

    def finish(self) -> list[Outcome]:
        """End the capture: the outcomes that were still held."""
        shown: list[Outcome] = []
        while self._held:
            self._settle(self._held.popleft(), shown)
        return shown

    def follow(self, frame: Frame) -> int:
        """Follow one frame: a code of `conntrack.table`, or `CT_NONE`.

        A packet whose checksum is in doubt is followed as a whole one.
        """
        packet = self.read(frame)
        if packet is None:
            return CT_NONE
        table = self.table
        if self.copies.searches and isinstance(packet, Packet) and self._is_copy(frame, packet):
            return CT_NONE
        code = table.track(packet, self.now, self._checksum_ok)
        self.by_ctstate[code] += 1
        if table.ignored is not None:
            self.ignored += 1
        key = table.key
        if key is not None and isinstance(packet, Packet):
            segment = packet.l4
            if isinstance(segment, Segment):
                suspect = self._suspect
                harmed = suspect is not None or self._checksum_ok is False
                cut = options_are_cut(packet, segment)
                if cut:
                    self.cut_options += 1
                self.streams.follow(
                    table.entry,
                    table.direction,
                    key,
                    segment,
                    frame.number,
                    cut,
                    self._late,
                    harmed,
                )
                if suspect is not None:
                    suspect.watched = self.streams.watch(segment)
        return code

    def _is_copy(self, frame: Frame, packet: Packet) -> bool:
        """Whether the frame shows a packet again; a translation is recorded."""
        segment = packet.l4
        if not isinstance(segment, Segment):
            return False
        key = key_of(packet.src, packet.dst, segment.sport, segment.dport, PROTO_TCP)
        copies = self.copies
        link = frame.octets[: len(frame.octets) - len(self._octets)]
        if frame.interface or frame.source:
            link += b"%d/%d" % (frame.interface, frame.source)
        kind = copies.look(packet, self._octets, key, frame.time_ns, frame.number, link)
        if kind == FIRST:
            return False
        first = copies.first
        if kind == TRANSLATED and first is not None and self.table.translate(first.key, key):
            self.translations += 1
        self._suspect = None
        self._no_packet(COPIED)
        return True

    def read(self, frame: Frame) -> Packet | Malformed | None:
        """The packet in a frame, put together if it comes in fragments, without following it."""
        self.frames += 1
        self._suspect = None
        self._inner = None
        if self._start_ns < 0:
            self._start_ns = frame.time_ns
        self.now = (frame.time_ns - self._start_ns) / 1_000_000_000
        # Several files are merged by time: in them too, an earlier time means disorder.
        self._late = frame.time_ns < self._last_ns
        if self._late:
            self.disordered += 1
        self._last_ns = frame.time_ns
        if frame.interface or frame.source:
            self.copies.expect()
        octets = self._packet_octets(frame, self.now)
        if not octets:
            self._no_packet(self.absent)
            return None
        packet = decode(octets)
        self._octets = octets
        self._checksum_ok = None
        if self._is_dropped_before(packet, octets):
            self._no_packet(DROPPED_BEFORE)
            return None
        if isinstance(packet, Packet):
            self._checksum_ok = self.checksums.ok(packet, octets)
            self._suspect = self.checksums.suspect
        elif packet.snapped:
            self._no_packet(SNAPPED)
            return None
        self.packet = packet
        if isinstance(packet, Packet) and not isinstance(packet.l4, Segment):
            self._look_inside(frame, packet, octets)
        return packet

    def _is_dropped_before(self, packet: Packet | Malformed, octets: bytes) -> bool:
        """Whether the IP layer drops a packet before conntrack."""
        if isinstance(packet, Malformed):
            return packet.problem in _DROPPED_BY_IP
        return packet.family == IPV4 and not self.checksums.header_ok(octets)

    def _look_inside(self, frame: Frame, packet: Packet, octets: bytes) -> None:
        """Count a tunnel; what it carries becomes `_inner`."""
        inner = inner_of(packet, octets)
        if inner is None:
            return
        self.tunnels[inner.tunnel] = self.tunnels.get(inner.tunnel, 0) + 1
        inside = octets[inner.start :]
        wire_len = max(len(inside), packet.length - inner.start)
        self._inner = Frame(
            frame.number, frame.time_ns, inner.linktype, wire_len, inside, frame.source
        )

    def _packet_octets(self, frame: Frame, now: float) -> bytes:
        """The IP packet; empty with `absent` set when there is none."""
        octets = frame.octets
        if (
            frame.linktype == ETHERNET
            and len(octets) > 34
            and octets[12] == 0x08
            and octets[13] == 0
            and octets[14] == 0x45
        ):
            # Nearly all frames are of this kind; they need no search for VLAN tags.
            octets = octets[14:]
        else:
            if frame.linktype in _COOKED:
                self.copies.expect()
            link = LINKS.get(frame.linktype)
            start = NO_PACKET if link is None else link(octets)
            if start == NO_PACKET:
                self.absent = NOT_IP
                if link is None:
                    self.absent = UNKNOWN_LINK
                    self.unknown_links.setdefault(frame.linktype, frame.number)
                return b""
            octets = octets[start:]
        self.absent = ""
        if is_fragment(octets):
            octets = self._fragments.offer(octets, now)
            if not octets:
                self.absent = FRAGMENT_WAITS
        return octets

    def _no_packet(self, why: str) -> None:
        self.absent = why
        self.packet = None
        self.without_packet[why] = self.without_packet.get(why, 0) + 1

    def outcome(self, frame: Frame, code: int) -> Outcome:
        """The outcome of the last frame; `code` is the result of `follow`."""
        packet = self.packet
        if code == CT_NONE or packet is None:
            return Outcome(frame, None, None, self.now, self.absent)
        if code == CT_INVALID:
            checksum = CHECKSUM_UNVERIFIED if self._checksum_ok is False else CHECKSUM_GOOD
            outcome = self._invalid(frame, packet, checksum)
        else:
            table = self.table
            outcome = Outcome(
                frame,
                packet,
                CTSTATES[code],
                self.now,
                ignored=table.ignored,
                state=0 if code == CT_UNTRACKED else table.state,
                direction=table.direction,
            )
        if self._suspect is not None:
            outcome.suspect = self._suspect
            outcome.if_broken = self._invalid(frame, packet, CHECKSUM_UNVERIFIED)
        return outcome

    def _invalid(self, frame: Frame, packet: Packet | Malformed, checksum: int) -> Outcome:
        """The outcome of the last packet as an INVALID one."""
        snapshot = self.table.snapshot()
        if snapshot is not None:
            # This value was made for the call and is not changed from here on.
            snapshot.status |= self._settings.nat_status
        queued = Queued(self._octets, _PREROUTING, "", "", 0, checksum)
        judgment = self._engine.judge_packet(queued, packet, snapshot, Evidence.REPLAY, self.now)
        outcome = Outcome(
            frame,
            packet,
            CtState.INVALID,
            self.now,
            snapshot=snapshot,
            finding=judgment.finding,
            decision=None if self._policy is None else judgment.decision,
            state=0 if snapshot is None else snapshot.state,
            direction=0 if snapshot is None else snapshot.direction,
        )
        if isinstance(packet, Packet) and isinstance(packet.l4, Segment):
            outcome.place = place_of(self.streams, packet.l4)
        return outcome

    def _settle(self, held: Outcome, shown: list[Outcome]) -> None:
        """Settle what was uncertain about an outcome; append the outcome if it is to be shown."""
        outcome = held
        suspect = held.suspect
        if suspect is not None and held.if_broken is not None:
            if self.checksums.is_broken(suspect):
                outcome = held.if_broken
                self._recount(held)
            held.suspect = None
            held.if_broken = None
        finding = outcome.finding
        if finding is None and not self._settings.every:
            return
        place = outcome.place
        if finding is not None and not self._settings.strict:
            doubted = doubt_of(
                finding,
                place,
                incomplete=self.streams.proofs > 0,
                drops=self.drops > 0,
            )
            outcome.doubted = doubted
            if doubted is not None and doubted.kind is Doubt.UNSEEN_WINDOW and place is not None:
                # Conntrack's window lags from here on; the findings after it follow from that.
                place.stream.prove(
                    Proof(
                        Doubt.UNSEEN_WINDOW,
                        place.index,
                        outcome.frame.number,
                        1 - place.sender,
                        Seq(0),
                        0,
                    )
                )
        if place is not None and finding is not None:
            if outcome.doubted is None:
                invalid = place.stream.invalid
                invalid[finding.reason] = invalid.get(finding.reason, 0) + 1
            else:
                place.stream.in_doubt += 1
        outcome.place = None
        shown.append(outcome)

    def _recount(self, followed: Outcome) -> None:
        """Count a packet as INVALID that was counted with another ctstate."""
        assert followed.ctstate is not None  # noqa: S101 - it was followed
        self.by_ctstate[CTSTATES.index(followed.ctstate)] -= 1
        self.by_ctstate[CT_INVALID] += 1
        if followed.ignored is not None:
            self.ignored -= 1
