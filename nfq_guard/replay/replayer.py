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
decide whether the capture is complete there (`replay.doubt`, `replay.checksums`); outcomes are
returned in the order of their frames.
"""

from collections import deque
from typing import Final, final

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.tunnels import MOST_NESTED
from nfq_guard.conntrack.entry import Entry, Key, key_of, reverse
from nfq_guard.conntrack.table import (
    CT_ESTABLISHED,
    CT_INVALID,
    CT_NEW,
    CT_UNTRACKED,
    CTSTATES,
    FlowTable,
)
from nfq_guard.engine import Engine, Mode
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import (
    PROTO_DCCP,
    PROTO_TCP,
    PROTO_UDPLITE,
    CtState,
    Evidence,
    FlowSnapshot,
    Hook,
    icmp_counterpart,
)
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.replay.associations import Associations
from nfq_guard.replay.checksums import ChecksumJudge, Opening
from nfq_guard.replay.copies import DEPARTED, FIRST, TRANSLATED, Copies, link_place
from nfq_guard.replay.doubt import doubt_of, place_of
from nfq_guard.replay.halves import Halves, Requests
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.packets import COPIED, DROPPED_BEFORE, PacketReader
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.shortcut import Shortcut
from nfq_guard.replay.stream import Doubt, Proof, Stream
from nfq_guard.replay.streams import Streams
from nfq_guard.resets import Passed, Resets
from nfq_guard.seqno import Seq
from nfq_guard.wire.packet import (
    ACK,
    CHECKSUM_GOOD,
    CHECKSUM_UNVERIFIED,
    RST,
    SYN,
    IcmpMessage,
    Malformed,
    Packet,
    Queued,
    SctpPacket,
    Segment,
)
from nfq_guard.wire.tcp import options_are_cut

# Result of `Replayer.follow` if conntrack would see no packet in the frame.
CT_NONE: Final = -1

# Maximum number of RSTs in the list; those beyond it are counted only.
MOST_RESETS: Final = 1_000
# Maximum number of held outcomes; beyond it the oldest is settled with what is known.
MOST_HELD: Final = 20_000

# Of packets without an entry, this many are always in doubt, and more are if at least so many flows
# began for each.
_FEW: Final = 8
_WHOLE_PER_ORPHAN: Final = 3

# Protocols that some kernels follow with trackers of their own, which the table does not have.
_UNMODELLED: Final = (PROTO_DCCP, PROTO_UDPLITE)
_WITHOUT_ENTRY: Final = (Reason.NO_ENTRY, Reason.ICMP_UNRELATED)
_PREROUTING: Final = int(Hook.PREROUTING)


@final
class _Undecided:
    """The policy of replays without one: it allows everything."""

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
        policy: The policy; None for a replay without one.
        table: The flows.
        reader: Extracts the packet of each frame.
        by_ctstate: Number of packets that conntrack saw, by `conntrack.table` code.
        ignored: Number of these that left their flow unchanged.
        streams: The TCP streams as the capture shows them.
        drops: Frames that the capture itself reports as dropped; set by the caller.
        unmodelled: Number of packets of protocols that some kernels follow with trackers of their
            own, by the number of the protocol; the table does not model these trackers.
        cut_options: TCP segments whose options were not captured completely.
        copies: Finds frames that repeat a packet; these are not judged.
        translations: Flows whose address translation the capture shows.
        resets: The first RSTs that answer an INVALID packet, each by its frame and that packet.
        caused_resets: Number of RSTs that answer an INVALID packet.
    """

    def __init__(self, settings: ReplaySettings, policy: Policy | None = None) -> None:
        """Begin with an empty table; without a policy every packet is allowed."""
        self._settings = settings
        self.policy = policy
        self.copies = Copies()
        self.reader = PacketReader(settings.checksums, self.copies)
        self.streams = Streams(settings.capacity, settings.assumed_wscale)
        self.drops = 0
        self.unmodelled: dict[int, int] = {}
        self.cut_options = 0
        self.translations = 0
        self._associations = Associations(settings.capacity)
        self._held: deque[Outcome] = deque()
        self._openings: deque[Opening] = deque()
        self.table = FlowTable(settings.kernel, settings.sysctls, settings.capacity)
        self._halves = Halves()
        self._requests = Requests(settings.sysctls.icmp_timeout_s)
        # Whether the last packet answers an ICMP request that has another tuple in the file.
        self._answers_half = False
        self._shortcut = Shortcut(self.table, self.reader.checksums)
        self._engine = Engine(
            policy=_Undecided() if policy is None else policy,
            flows=self.table,
            mode=Mode.ENFORCE,
            kernel=settings.kernel,
            sysctls=settings.sysctls,
        )
        self.by_ctstate = [0] * len(CTSTATES)
        # Packets that `by_ctstate` counts at the end of a batch.
        self._established = 0
        self.ignored = 0
        self.resets: list[tuple[int, Passed]] = []
        self.caused_resets = 0
        self._resets = Resets()
        self._cause: Passed | None = None
        # Whether the other direction of the last segment's flow may have another tuple.
        self._awaits_half = False
        # Packets that one missing packet each would explain.
        self._orphans = 0

    @property
    def frames(self) -> int:
        """Frames followed."""
        return self.reader.frames

    @property
    def now(self) -> float:
        """Time of the last frame, in seconds since the first."""
        return self.reader.now

    @property
    def decapsulates(self) -> bool:
        """Whether the packets inside tunnels are followed too."""
        return self._settings.decapsulate

    @property
    def expires(self) -> bool:
        """Whether entries expire."""
        return self._settings.sysctls.expires

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
        shortens = not (every or self._settings.watched)
        held = self._held
        reader = self.reader
        for frame in frames:
            if shortens and not self.copies.searches:
                code = self._follow_shortcut(frame)
                if code == CT_INVALID:
                    reader.take_whole(frame.octets[self._shortcut.start :])
                    held.append(self.outcome(frame, code))
                if code != CT_NONE:
                    continue
                code = self.follow(frame)
                entry = self.table.entry
                if entry is not None and code in (CT_NEW, CT_ESTABLISHED) and not self._awaits_half:
                    self._shortcut.learn(entry, self.table.direction)
            else:
                code = self.follow(frame)
            if code == CT_INVALID or every or reader.suspect is not None:
                held.append(self.outcome(frame, code))
            if reader.inner is not None and self._settings.decapsulate:
                self._follow_inner(held)
        self.by_ctstate[CT_ESTABLISHED] += self._established
        self._established = 0
        shown: list[Outcome] = []
        after = self._settings.settle_after_s
        while held and (len(held) > MOST_HELD or (after and reader.now - held[0].now > after)):
            self._settle(held.popleft(), shown)
        return shown

    def _follow_shortcut(self, frame: Frame) -> int:
        """`follow` for a frame that can take the shortcut; else `CT_NONE`, and nothing changes."""
        reader = self.reader
        now = reader.time_of(frame)
        way = self._shortcut.find(frame, now)
        if way is None:
            return CT_NONE
        self._cause = None
        reader.pass_by(frame, now)
        table = self.table
        entry = way.entry
        direction = way.direction
        segment = self._shortcut.segment
        if segment is None:
            code = table.track_datagram(entry, direction, now)
        else:
            code = table.track_segment(entry, direction, segment, now)
            if table.ignored is not None:
                self.ignored += 1
            stream = entry.stream
            assert isinstance(stream, Stream)  # noqa: S101 - set by the segment that was learnt from
            self.streams.follow_known(stream, direction, segment, frame.number, now)
        if code == CT_ESTABLISHED:
            self._established += 1
        else:
            self.by_ctstate[code] += 1
        return code

    def _follow_inner(self, held: deque[Outcome]) -> None:
        """Follow the packets inside the last one, at every depth."""
        reader = self.reader
        for _ in range(MOST_NESTED):
            frame = reader.inner
            if frame is None:
                return
            code = self.follow(frame)
            reader.frames -= 1
            if code == CT_INVALID or self._settings.every or reader.suspect is not None:
                held.append(self.outcome(frame, code))

    def finish(self) -> list[Outcome]:
        """End the capture, and return the outcomes that were still held."""
        shown: list[Outcome] = []
        while self._held:
            self._settle(self._held.popleft(), shown)
        while self._openings:
            self.reader.checksums.settle(self._openings.popleft())
        return shown

    def follow(self, frame: Frame) -> int:
        """Follow one frame; returns a code of `conntrack.table`, or `CT_NONE`.

        A packet whose checksum is uncertain is followed as an intact one.
        """
        reader = self.reader
        self._cause = None
        self._awaits_half = False
        packet = reader.read(frame)
        if packet is None:
            return CT_NONE
        table = self.table
        if isinstance(packet, Packet) and isinstance(packet.l4, Segment):
            segment = packet.l4
            if self.copies.searches and self._is_copy(frame, packet, segment):
                return CT_NONE
            if segment.flags & (SYN | RST) or self._halves.watches:
                self._pair(packet, segment)
        code = table.track(packet, reader.now, reader.checksum_ok)
        if code == CT_INVALID and reader.suspect is not None and reader.suspect.header:
            # It fits no flow: nothing speaks for its arrival.
            reader.suspect = None
            reader.no_packet(DROPPED_BEFORE)
            return CT_NONE
        if code == CT_INVALID and table.reason is Reason.NO_ENTRY and self.copies.last is not None:
            self.copies.last.strayed = self.copies.last.frame == frame.number
        self.by_ctstate[code] += 1
        if table.ignored is not None:
            self.ignored += 1
        if isinstance(packet, Packet):
            l4 = packet.l4
            if isinstance(l4, Segment):
                if table.key is not None:
                    self._follow_segment(packet, l4, table.key, frame.number)
                self._link_reset(packet, l4, frame.number)
            else:
                self._follow_other(packet, code)
        return code

    def _follow_other(self, packet: Packet, code: int) -> None:
        """Take a packet of another protocol than TCP into account; `code` is that of `follow`."""
        reader = self.reader
        table = self.table
        l4 = packet.l4
        if isinstance(l4, SctpPacket):
            entry = table.entry
            state = None if entry is None else entry.association
            self._associations.take(packet, l4, code, state, table.direction)
        elif isinstance(l4, IcmpMessage):
            way = None if code == CT_INVALID else table.direction
            self._answers_half = self._requests.take(packet, l4, reader.octets, reader.now, way)
        elif packet.proto in _UNMODELLED:
            self.unmodelled[packet.proto] = self.unmodelled.get(packet.proto, 0) + 1

    def _follow_segment(self, packet: Packet, segment: Segment, key: Key, frame: int) -> None:
        """Add the last segment to its stream, whose later segments decide about it."""
        reader = self.reader
        suspect = reader.suspect
        harmed = suspect is not None or reader.checksum_ok is False
        cut = options_are_cut(packet, segment)
        if cut:
            self.cut_options += 1
        table = self.table
        self.streams.follow(
            table.entry, table.direction, key, segment, frame, cut, reader.now, harmed
        )
        if suspect is not None:
            watched = self.streams.watch(segment)
            if watched is not None:
                suspect.watch(watched)
        self._await_answer(reader.checksums)
        if segment.flags & RST:
            self._note_end()
        elif table.entry is not None and segment.flags & (SYN | ACK) == ACK:
            self._look_for_half(segment, key, frame)

    def _look_for_half(self, segment: Segment, key: Key, frame: int) -> None:
        """Join the flow of the last segment with the one of which it is the other direction.

        The segment has an entry.
        """
        streams = self.streams
        stream = streams.stream
        if stream is None or not stream.is_half(streams.sender):
            return
        if self.reader.checksums.is_damaged(self.reader.suspect):
            return
        self._awaits_half = True
        other = self._halves.half_of(segment, key)
        if self._halves.likely is not None and streams.is_half(self._halves.likely):
            streams.lack_answer(key, self._halves.likely, frame)
        table = self.table
        if other is None or not streams.is_half(other) or not table.translate(key, reverse(other)):
            return
        self.translations += 1
        joined = table.joined
        kept: Entry | None = None
        if joined is None:
            # The entry of the other half has ended, as by an RST: its stream takes this one.
            kept = table.entry
            assert kept is not None  # noqa: S101 - required of the caller
            joined = kept
        table.joined = None
        streams.drop(joined)
        joined.stream = None
        now = self.reader.now
        streams.follow(kept, 0, reverse(other), segment, frame, cut=False, now=now, harmed=False)

    def _note_end(self) -> None:
        """Record that the last segment, an RST, ended its entry at once."""
        entry = self.table.entry
        stream = self.streams.stream
        if entry is not None and stream is not None and entry.gone:
            stream.killed_at = self.now
            stream.killed_index = stream.frames

    def _pair(self, packet: Packet, segment: Segment) -> None:
        """Record the translation of a flow, given its SYN+ACK or first RST with another tuple.

        Later segments may show that there is none.
        """
        key = key_of(packet.src, packet.dst, segment.sport, segment.dport, PROTO_TCP)
        halves = self._halves
        if self.reader.checksums.is_damaged(self.reader.suspect):
            return
        refuted = halves.refuted_by(segment, key, self.table.original_of(key))
        if refuted is not None:
            self.table.separate(refuted)
            self.translations -= 1
        opening = halves.opening_of(segment, key)
        if opening is not None and self.table.answer(opening, key):
            if segment.flags & SYN:
                halves.join(opening, key)
            self.translations += 1

    def _await_answer(self, checksums: ChecksumJudge) -> None:
        """Keep the last packet's checksum undecided if it is the SYN of an `Opening`."""
        opener = checksums.opener
        streams = self.streams
        if opener is None or streams.stream is None:
            return
        peer = streams.stream.sides[1 - streams.sender]
        self._openings.append(Opening(opener, peer))
        if len(self._openings) > MOST_HELD:
            checksums.settle(self._openings.popleft())

    def _link_reset(self, packet: Packet, segment: Segment, frame: int) -> None:
        """Find the INVALID packet that an RST answers."""
        cause = self._resets.cause_of(packet, segment, self.reader.now)
        if cause is None:
            return
        self._cause = cause
        stream = self.streams.stream
        if stream is not None and stream.frames == 1:
            stream.strayed = True
        self.caused_resets += 1
        if len(self.resets) < MOST_RESETS:
            self.resets.append((frame, cause))

    def _is_copy(self, frame: Frame, packet: Packet, segment: Segment) -> bool:
        """Whether the frame repeats a packet; records a translation."""
        key = key_of(packet.src, packet.dst, segment.sport, segment.dport, PROTO_TCP)
        copies = self.copies
        reader = self.reader
        link = link_place(frame, len(frame.octets) - len(reader.octets))
        damaged = reader.checksums.is_damaged(reader.suspect)
        kind = copies.look(packet, reader.octets, key, frame.time_ns, frame.number, link, damaged)
        if kind == FIRST:
            return False
        if kind == DEPARTED:
            assert copies.arriving is not None  # noqa: S101 - set with this answer
            if self._resets.cause_of(packet, segment, reader.now) is None:
                _turn_back(packet, segment, copies.arriving)
            # Else it is an RST to the very tuple of an INVALID packet: the host's own.
            return False
        first = copies.first
        if kind == TRANSLATED and first is not None and first.strayed:
            # The packet left translated, so the host had an entry: earlier frames are missing or
            # late.
            self.streams.lack(first.key, segment, frame.number)
            self.streams.lack(key, segment, frame.number)
        if kind == TRANSLATED and first is not None and self.table.translate(first.key, key):
            self.translations += 1
            if self.table.joined is not None:
                self.streams.drop(self.table.joined)
                self.table.joined = None
        reader.suspect = None
        reader.no_packet(COPIED)
        return True

    def outcome(self, frame: Frame, code: int) -> Outcome:
        """The outcome of the last frame; `code` is the result of `follow`."""
        reader = self.reader
        packet = reader.packet
        if code == CT_NONE or packet is None:
            return Outcome(frame, None, None, reader.now, reader.absent)
        if code == CT_INVALID:
            checksum = CHECKSUM_UNVERIFIED if reader.checksum_ok is False else CHECKSUM_GOOD
            outcome = self._invalid(frame, packet, checksum)
        else:
            table = self.table
            outcome = Outcome(
                frame,
                packet,
                CTSTATES[code],
                reader.now,
                ignored=table.ignored,
                state=0 if code == CT_UNTRACKED else table.state,
                direction=table.direction,
            )
        outcome.cause = self._cause
        if reader.suspect is not None:
            outcome.suspect = reader.suspect
            if reader.suspect.header:
                outcome.if_broken = Outcome(frame, None, None, reader.now, DROPPED_BEFORE)
            else:
                outcome.if_broken = self._invalid(frame, packet, CHECKSUM_UNVERIFIED)
                outcome.if_broken.cause = self._cause
        return outcome

    def _invalid(self, frame: Frame, packet: Packet | Malformed, checksum: int) -> Outcome:
        """The outcome of the last packet as an INVALID one."""
        reader = self.reader
        snapshot = self.table.snapshot()
        if snapshot is not None:
            # This value was made for the call and does not change afterwards.
            snapshot.status |= self._settings.nat_status
        queued = Queued(reader.octets, _PREROUTING, "", "", 0, checksum)
        judgment = self._engine.judge_packet(queued, packet, snapshot, Evidence.REPLAY, reader.now)
        outcome = Outcome(
            frame,
            packet,
            CtState.INVALID,
            reader.now,
            snapshot=snapshot,
            finding=judgment.finding,
            decision=None if self.policy is None else judgment.decision,
            state=0 if snapshot is None else snapshot.state,
            direction=0 if snapshot is None else snapshot.direction,
        )
        if isinstance(packet, Packet) and isinstance(packet.l4, Segment):
            outcome.place = place_of(self.streams, packet.l4, reader.now)
            rule = "" if self.policy is None else judgment.decision.rule
            passed = Passed(reader.now, judgment.finding.reason, rule, frame.number)
            self._resets.add(packet, packet.l4, passed)
        elif isinstance(packet, Packet) and isinstance(packet.l4, SctpPacket):
            association = self._associations.of(packet)
            reason = judgment.finding.reason
            outcome.claim = association.claim(packet.l4, reason, self.table.direction)
        self._note_orphan(outcome)
        return outcome

    def _note_orphan(self, outcome: Outcome) -> None:
        """Record whether one missing packet would explain that the last one has no entry."""
        table = self.table
        packet = outcome.packet
        if table.expired or outcome.claim is not None or not isinstance(packet, Packet):
            return
        message = packet.l4
        if isinstance(message, IcmpMessage):
            outcome.translated = self._answers_half
            # An error that quotes no packet has no flow, nor has a message that answers none.
            outcome.orphan = (
                message.quoted is not None
                if message.is_error
                else icmp_counterpart(packet.proto, message.type) is not None
            ) and table.reason in _WITHOUT_ENTRY
        else:
            outcome.orphan = table.reason is Reason.NO_ENTRY
        if (
            outcome.orphan
            and table.reason is not Reason.ICMP_UNRELATED
            and not outcome.translated
            and (outcome.place is None or outcome.place.index == 1)
        ):
            self._orphans += 1

    def _may_lack_one(self, finding: Finding) -> bool:
        """Whether the file may lack the packet that would explain a finding of no entry.

        Packets without an entry are few enough for frames that the capture lost; a host that sees
        one direction alone has no entry for most of them. But a capture of ICMP alone lacks every
        packet that an error quotes.
        """
        return (
            finding.reason is Reason.ICMP_UNRELATED
            or self._orphans < _FEW
            or _WHOLE_PER_ORPHAN * self._orphans <= self.table.created
        )

    def _settle(self, held: Outcome, shown: list[Outcome]) -> None:
        """Decide what was uncertain about an outcome; append the outcome if it is to be shown."""
        outcome = held
        suspect = held.suspect
        if suspect is not None and held.if_broken is not None:
            checksums = self.reader.checksums
            if suspect.header:
                if checksums.is_thrown_away(suspect):
                    outcome = held.if_broken
                    self._uncount(held)
                    self.reader.count_absent(DROPPED_BEFORE)
            elif checksums.is_broken(suspect):
                outcome = held.if_broken
                self._uncount(held)
                self.by_ctstate[CT_INVALID] += 1
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
                began=outcome.claim is None or outcome.claim.stands,
                orphan=outcome.translated or (outcome.orphan and self._may_lack_one(finding)),
                incomplete=self.streams.proofs > 0 or self.reader.disordered > 0,
                drops=self.drops > 0,
            )
            outcome.doubted = doubted
            if doubted is not None and doubted.kind is Doubt.UNSEEN_WINDOW and place is not None:
                # From here on conntrack's window lags, which explains the findings that follow.
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
                place.stream.count_invalid(finding.reason)
            else:
                place.stream.in_doubt += 1
        outcome.place = None
        outcome.claim = None
        shown.append(outcome)

    def _uncount(self, followed: Outcome) -> None:
        """Undo the count of a packet's ctstate."""
        assert followed.ctstate is not None  # noqa: S101 - it was followed
        self.by_ctstate[CTSTATES.index(followed.ctstate)] -= 1
        if followed.ignored is not None:
            self.ignored -= 1


def _turn_back(packet: Packet, segment: Segment, arriving: Key) -> None:
    """Replace a translated packet's tuple by the one with which it arrived and was judged."""
    packet.src, packet.dst, ports, _ = arriving
    segment.sport = ports >> 16
    segment.dport = ports & 0xFFFF
