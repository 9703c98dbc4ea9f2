# SPDX-License-Identifier: MIT
"""The flow table: packets in, ctstates out, as in the kernel's PREROUTING hook.

    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    code = table.track(packet, now)
    if code == CT_INVALID:
        finding = diagnose(queued, packet, table.snapshot(), Evidence.REPLAY, kernel, sysctls)

`track` returns a number and stores further results in attributes, because an object for each packet
would cost more than judging the packet.
"""

from collections.abc import Sequence
from typing import Final, final

from nfq_guard.conntrack.entry import (
    ACCEPT_LAST,
    IGNORE,
    INVALID,
    NO_PEERS,
    REOPEN,
    Entry,
    Key,
    key_of,
    new_peer,
    reverse,
)
from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.conntrack.sctp import SctpTracker, problem_of
from nfq_guard.conntrack.states import FLAGS_PASS, SEGMENT_CLASS
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.tcp import TcpTracker
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_SACK_PERM,
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_DST_NAT,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
    IPV4,
    PROTO_GRE,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_TCP,
    PROTO_UDP,
    CtState,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    TcpState,
    answering,
    icmp_counterpart,
    is_icmp_request,
)
from nfq_guard.wire.icmp import LAST_TYPE_V4, REDIRECT_V6, comes_from_link
from nfq_guard.wire.ipv6 import NO_NEXT_HEADER
from nfq_guard.wire.packet import (
    SYN,
    Datagram,
    GreHeader,
    IcmpMessage,
    Malformed,
    Packet,
    SctpPacket,
    Segment,
    tuple_of,
)
from nfq_guard.wire.tcp import options_are_cut

DEFAULT_CAPACITY: Final = 262_144
# The codes that `track` returns; CTSTATES[code] is the ctstate.
CT_NEW: Final = 0
CT_ESTABLISHED: Final = 1
CT_RELATED: Final = 2
CT_INVALID: Final = 3
CT_UNTRACKED: Final = 4
CTSTATES: Final = (
    CtState.NEW,
    CtState.ESTABLISHED,
    CtState.RELATED,
    CtState.INVALID,
    CtState.UNTRACKED,
)

# Multicast listener and neighbour discovery, which conntrack does not track (kernel.md 2).
_UNTRACKED_V6: Final = (130, 131, 132, 133, 134, 135, 136, 143, 151, 152)
# Flows of other protocols are identified by their addresses only.
_PROTOCOLS_WITH_A_TUPLE: Final = (
    PROTO_TCP,
    PROTO_UDP,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_GRE,
)
# Time after which a datagram flow with packets both ways counts as a stream, seconds.
_STREAM_AFTER_S: Final = 2
# With fewer flows the table is not searched for expired ones.
_SWEEP_FROM: Final = 1024


@final
class FlowTable:
    """All flows that were seen and have not expired.

    Attributes:
        ctstate: The code that `track` returned for the last packet.
        reason: Why the last packet is INVALID; None when it is not.
        ignored: Why the packet left its flow unchanged ("ignored" in the kernel's log); None if it
            did not.
        entry: The last packet's flow; None without one, and for a packet that was INVALID before
            its lookup.
        direction: Direction of the last packet in its flow; 0 original, 1 reply.
        key: The direction of a TCP segment in its flow, with the tuple of the original direction
            or its reverse; None for any other packet, and for a segment that is INVALID by itself.
        created: Number of flows opened so far.
        joined: The entry that `translate` last dropped as the second half of a flow; None before.
        expired: Whether the last packet's entry, or that of the packet that it quotes, had expired.
    """

    def __init__(
        self, kernel: KernelRules, sysctls: Sysctls, capacity: int = DEFAULT_CAPACITY
    ) -> None:
        """Start with an empty table.

        Args:
            kernel: The conntrack rules to follow.
            sysctls: The conntrack sysctls.
            capacity: Maximum number of flows, each about 800 bytes. A port scan would fill any
                table; when it is full, expired flows are evicted first, then the oldest that never
                were ASSURED, then the oldest.
        """
        self._tcp = TcpTracker(kernel, sysctls)
        self._sctp = SctpTracker()
        self.ctstate: int = CT_INVALID
        self.reason: Reason | None = None
        self.ignored: Ignored | None = None
        self.entry: Entry | None = None
        self.direction = 0
        self.key: Key | None = None
        self.created = 0
        self.joined: Entry | None = None
        self.expired = False
        self._sysctls = sysctls
        self._verifies = sysctls.checksum
        self._expires = sysctls.expires
        self._capacity = max(1, capacity)
        self._sweep_at = min(self._capacity, _SWEEP_FROM)
        self._packet: Packet | Malformed | None = None
        self._now = 0.0
        # Each entry, by the keys of both directions.
        self._entries: dict[Key, Entry] = {}
        # Entries whose reply is a key of another entry.
        self._claims: dict[Key, Entry] = {}
        self._count = 0

    def __len__(self) -> int:
        """The number of flows that are held, including expired ones that no lookup has removed."""
        return self._count

    @property
    def state(self) -> int:
        """`TcpState` number of the last packet's flow after it; 0 without one."""
        entry = self.entry
        return 0 if entry is None else entry.state

    @property
    def evidence(self) -> Evidence:
        """Snapshots come from a replay (`engine.FlowLookup`)."""
        return Evidence.REPLAY

    def track(
        self,
        packet: Packet | Malformed,
        now: float,
        checksum_ok: bool | None = None,  # noqa: FBT001 - positional on the packet path
    ) -> int:
        """Follow one whole packet; fragments must be reassembled, and packets in wire order.

        Args:
            packet: As decoded.
            now: Seconds on any clock, not going back by much.
            checksum_ok: Whether the transport checksum is right; None: not to be judged.

        Returns:
            `CT_NEW`, `CT_ESTABLISHED`, `CT_RELATED`, `CT_INVALID` or `CT_UNTRACKED`.
        """
        self._packet = packet
        self._now = now
        self.reason = None
        self.ignored = None
        self.entry = None
        self.direction = 0
        self.key = None
        self.expired = False
        if isinstance(packet, Malformed):
            answer = self._invalid(Reason.UNSUPPORTED if packet.snapped else Reason.MALFORMED)
        elif checksum_ok is False and self._verifies:
            answer = self._invalid(Reason.BAD_CHECKSUM)
        else:
            l4 = packet.l4
            if isinstance(l4, Segment):
                answer = self._segment(packet, l4, now)
            elif isinstance(l4, Datagram):
                answer = self._datagram(packet, l4, now)
            elif isinstance(l4, IcmpMessage):
                answer = self._icmp(packet, l4, now)
            elif isinstance(l4, SctpPacket):
                answer = self._sctp_packet(packet, l4, now)
            elif isinstance(l4, GreHeader):
                answer = self._gre(packet, l4, now)
            else:
                answer = self._other(packet, now)
        self.ctstate = answer
        return answer

    def has(self, entry: Entry, now: float) -> bool:
        """Whether `entry` is still in the table, without a translation, and has not expired."""
        return not (
            entry.gone
            or entry.status & (IPS_SRC_NAT | IPS_DST_NAT)
            or (entry.expires <= now and self._expires)
        )

    def track_segment(self, entry: Entry, direction: int, segment: Segment, now: float) -> int:
        """`track` for a segment, other than a SYN or RST, of a flow that the table `has`.

        `key` is not set, which would create a tuple for each segment.

        Args:
            entry: Its flow.
            direction: Its direction there.
            segment: With flags that pass `states.FLAGS_PASS`, its SACK blocks, and no wrong
                checksum.
            now: As for `track`.
        """
        tcp = self._tcp
        self._now = now
        self.reason = None
        self.ignored = None
        self.entry = entry
        self.direction = direction
        self.key = None
        outcome = tcp.follow(entry, segment, SEGMENT_CLASS[segment.flags], direction, now)
        if outcome == INVALID:
            self.reason = tcp.reason
            answer = CT_INVALID
        else:
            if outcome == IGNORE:
                self.ignored = tcp.ignored
            answer = _passed(entry, direction)
        self.ctstate = answer
        return answer

    def track_datagram(self, entry: Entry, direction: int, now: float) -> int:
        """`track` for a datagram of a flow that the table `has`, without a wrong checksum."""
        self._now = now
        self.reason = None
        self.ignored = None
        self.entry = entry
        self.direction = direction
        self.key = None
        answer = self._refresh_datagrams(entry, direction, now)
        self.ctstate = answer
        return answer

    def snapshot(self) -> FlowSnapshot | None:
        """The flow of the last packet, after the packet; None without one.

        For an INVALID packet this is the flow of its tuple; for an ICMP error, that of the quoted
        packet.
        """
        entry = self.entry
        if entry is not None:
            return entry.snapshot(self.direction, self._now)
        packet = self._packet
        if not isinstance(packet, Packet):
            return None
        sent = tuple_of(packet)
        return None if sent is None else self._snapshot_of(_key_of_tuple(sent))

    def translate(self, arriving: Key, leaving: Key) -> bool:
        """Record that packets which arrive as `arriving` leave as `leaving`.

        Both directions of the flow then belong to one entry. If each side of the translation had an
        entry, because a capture may show them in any order, the older one is kept.

        Returns:
            Whether the translation was recorded: the entries had none so far.
        """
        if arriving == leaving:
            return False
        entry = self._live(arriving)
        opposite = self._live(reverse(leaving))
        same = self._live(leaving)
        if opposite is not None and opposite is not entry and opposite.original == reverse(leaving):
            # These are replies: the original packets leave as the reverse of `arriving`.
            if entry and entry.original == reverse(arriving) and _is_translated(opposite):
                # The opener has its ports again, with another translation.
                self._forget(opposite)
                return self._join(entry, None, opposite.original, arriving)
            return self._join(opposite, entry, opposite.original, arriving)
        if same is not None and same is not entry and same.original == leaving:
            return self._join(same, entry, arriving, same.reply)
        if entry is None or entry.original != arriving or opposite is not None or same is not None:
            return False
        return self._join(entry, None, arriving, reverse(leaving))

    def answer(self, opening: Key, reply: Key) -> bool:
        """Record that the reply to the SYN with the tuple `opening`, and no other, is `reply`.

        Returns:
            Whether that is a translation of a flow without a reply so far.
        """
        entry = self._live(opening)
        if entry is None or entry.state != TcpState.SYN_SENT:
            return False
        other = self._live(reply)
        if other is not None:
            if _is_translated(other) and other.reply == reply and _ends(other):
                # The opener has its ports again, with another translation.
                self._forget(other)
            elif _opens_apart(other, entry) and other.original == reverse(reply):
                # The answer to its own SYN has another tuple.
                self._claims[reply] = other
            else:
                return False
        return self._join(entry, None, opening, reply)

    def original_of(self, key: Key) -> Key | None:
        """The original direction of the flow of `key`; None without a flow."""
        entry = self._live(key)
        return None if entry is None else entry.original

    def separate(self, opening: Key) -> None:
        """Undo `answer` for the flow of a SYN with the tuple `opening`, if it still exists."""
        entries = self._entries
        entry = entries.get(opening)
        if entry is None or not _is_translated(entry):
            return
        self._remove_key(entry.reply, entry)
        entry.reply = reverse(entry.original)
        entry.status &= ~(IPS_SRC_NAT | IPS_DST_NAT)
        entries.setdefault(entry.reply, entry)

    def _join(self, entry: Entry, other: Entry | None, original: Key, reply: Key) -> bool:
        """Set the tuples of a translated entry; drop `other`, its second half."""
        if _is_translated(entry) or (other is not None and _is_translated(other)):
            return False
        if other is not None:
            self._forget(other)
            self.created -= 1
            self.joined = other
        entries = self._entries
        self._remove_key(entry.original, entry)
        self._remove_key(entry.reply, entry)
        entry.original = original
        entry.reply = reply
        entries[original] = entry
        entries[reply] = entry
        if original[0] != reply[1] or original[2] >> 16 != reply[2] & 0xFFFF:
            entry.status |= IPS_SRC_NAT
        if original[1] != reply[0] or original[2] & 0xFFFF != reply[2] >> 16:
            entry.status |= IPS_DST_NAT
        return True

    def lookup(self, tuples: Sequence[FlowTuple]) -> Sequence[FlowSnapshot | None]:
        """The flows of tuples, in either direction (`engine.FlowLookup`).

        Entries that had expired by the time of the last packet are not found.
        """
        return [self._snapshot_of(_key_of_tuple(flow)) for flow in tuples]

    def _snapshot_of(self, key: Key) -> FlowSnapshot | None:
        entry = self._find(key, self._now)
        if entry is None:
            return None
        return entry.snapshot(_direction(entry, key), self._now)

    def _invalid(self, reason: Reason) -> int:
        self.reason = reason
        return CT_INVALID

    def _segment(self, packet: Packet, segment: Segment, now: float) -> int:
        if not FLAGS_PASS[segment.flags]:
            return self._invalid(Reason.BAD_FLAGS)
        kind = SEGMENT_CLASS[segment.flags]
        src = packet.src
        dst = packet.dst
        sport = segment.sport
        dport = segment.dport
        key = (src, dst, sport << 16 | dport, PROTO_TCP)
        self.key = key
        direction = 0
        entry = self._find(key, now)
        if entry is not None:
            direction = _direction(entry, key)
        else:
            entry = self._open_tcp(key, segment, kind, now)
            if entry is None:
                return self._invalid(Reason.NO_ENTRY)
        tcp = self._tcp
        outcome = tcp.follow(entry, segment, kind, direction, now)
        if outcome == REOPEN:
            self._forget(entry)
            entry = self._open_tcp(key, segment, kind, now)
            assert entry is not None  # noqa: S101 - only a SYN reopens
            direction = 0
            outcome = tcp.follow(entry, segment, kind, direction, now)
        self.entry = entry
        self.direction = direction
        if direction == 1 and entry.status & (IPS_SRC_NAT | IPS_DST_NAT):
            self.key = reverse(entry.original)
        if segment.flags & SYN and options_are_cut(packet, segment):
            # The scale of this end is unknown, as in a flow picked up in the middle.
            for peer in entry.peers:
                peer.flags |= IP_CT_TCP_FLAG_SACK_PERM | IP_CT_TCP_FLAG_BE_LIBERAL
        if outcome == INVALID:
            self.reason = tcp.reason
            return CT_INVALID
        if outcome == IGNORE:
            self.ignored = tcp.ignored
        elif outcome == ACCEPT_LAST:
            self._forget(entry)
        return _passed(entry, direction)

    def _open_tcp(self, key: Key, segment: Segment, kind: int, now: float) -> Entry | None:
        tcp = self._tcp
        if not tcp.opens(kind):
            return None
        entry = Entry(key, reverse(key), now, (new_peer(), new_peer()))
        tcp.open(entry, segment, kind)
        self._add(entry, now)
        return entry

    def _datagram(self, packet: Packet, datagram: Datagram, now: float) -> int:
        sport = datagram.sport
        dport = datagram.dport
        key = key_of(packet.src, packet.dst, sport, dport, PROTO_UDP)
        reply = key_of(packet.dst, packet.src, dport, sport, PROTO_UDP)
        entry, direction = self._find_or_open(key, reply, now)
        return self._refresh_datagrams(entry, direction, now)

    def _refresh_datagrams(self, entry: Entry, direction: int, now: float) -> int:
        timeout = self._sysctls.udp_timeout_s
        if entry.status & IPS_SEEN_REPLY and now - entry.created > _STREAM_AFTER_S:
            timeout = self._sysctls.udp_stream_timeout_s
            entry.status |= IPS_ASSURED
        entry.expires = now + timeout
        return _passed(entry, direction)

    def _sctp_packet(self, packet: Packet, sctp: SctpPacket, now: float) -> int:
        if problem_of(sctp):
            return self._invalid(Reason.MALFORMED)
        tracker = self._sctp
        key = key_of(packet.src, packet.dst, sctp.sport, sctp.dport, PROTO_SCTP)
        direction = 0
        entry = self._find(key, now)
        if entry is None:
            association = tracker.open(sctp)
            if association is None:
                return self._invalid(tracker.reason)
            entry = Entry(key, reverse(key), now, NO_PEERS)
            entry.association = association
            self._add(entry, now)
        else:
            direction = _direction(entry, key)
            association = entry.association
            assert association is not None  # noqa: S101 - every entry of SCTP has one
            if tracker.follow(association, sctp, direction) == INVALID:
                self.entry = entry
                self.direction = direction
                if tracker.assures:
                    entry.status |= IPS_ASSURED
                return self._invalid(tracker.reason)
        self.entry = entry
        self.direction = direction
        if tracker.refreshes:
            entry.expires = now + self._sysctls.sctp_timeouts_s[association.state]
        code = _passed(entry, direction)
        if tracker.assures:
            entry.status |= IPS_ASSURED
        return code

    def _gre(self, packet: Packet, header: GreHeader, now: float) -> int:
        key = key_of(packet.src, packet.dst, 0, header.call, PROTO_GRE)
        reply = key_of(packet.dst, packet.src, header.call, 0, PROTO_GRE)
        entry, direction = self._find_or_open(key, reply, now)
        timeout = self._sysctls.gre_timeout_s
        if entry.status & IPS_SEEN_REPLY:
            timeout = self._sysctls.gre_stream_timeout_s
            entry.status |= IPS_ASSURED
        entry.expires = now + timeout
        return _passed(entry, direction)

    def _other(self, packet: Packet, now: float) -> int:
        """A protocol without a tracker: flows between two addresses."""
        proto = packet.proto
        if packet.fragment_offset or proto in (PROTO_ICMP, PROTO_ICMPV6):
            return self._invalid(Reason.UNSUPPORTED)  # ICMP of the other family
        if packet.family != IPV4 and proto == NO_NEXT_HEADER:
            return self._invalid(Reason.UNSUPPORTED)
        key = key_of(packet.src, packet.dst, 0, 0, proto)
        reply = key_of(packet.dst, packet.src, 0, 0, proto)
        entry, direction = self._find_or_open(key, reply, now)
        entry.expires = now + self._sysctls.generic_timeout_s
        return _passed(entry, direction)

    def _icmp(self, packet: Packet, message: IcmpMessage, now: float) -> int:
        kind = message.type
        v4 = packet.family == IPV4
        if v4 and kind > LAST_TYPE_V4:
            return self._invalid(Reason.MALFORMED)
        if not v4 and kind in _UNTRACKED_V6:
            return CT_UNTRACKED
        if not v4 and kind == REDIRECT_V6 and not comes_from_link(packet):
            return self._invalid(Reason.MALFORMED)
        if message.is_error:
            return self._icmp_error(packet, message, now)
        sent = tuple_of(packet)
        assert sent is not None  # noqa: S101 - every message that is not an error has one
        key = _key_of_tuple(sent)
        if icmp_counterpart(packet.proto, kind) is None or (
            not is_icmp_request(packet.proto, kind) and self._find(key, now) is None
        ):
            return self._invalid(Reason.NO_ENTRY)
        reply = _key_of_tuple(answering(sent))
        entry, direction = self._find_or_open(key, reply, now)
        entry.expires = now + self._sysctls.icmp_timeout_s
        return _passed(entry, direction)

    def _icmp_error(self, packet: Packet, message: IcmpMessage, now: float) -> int:
        """An error belongs to the flow in which the quoted packet's answer would travel."""
        quoted = message.quoted
        if quoted is None:
            return self._invalid(Reason.ICMP_UNRELATED)
        sent = _key_of_tuple(quoted)
        sought = _key_of_tuple(answering(quoted))
        if quoted.proto not in _PROTOCOLS_WITH_A_TUPLE:
            sent = key_of(quoted.src, quoted.dst, 0, 0, quoted.proto)
            sought = reverse(sent)
        entry = self._find(sought, now)
        if entry is not None:
            self.direction = _direction(entry, sought)
        else:
            # As the host passes an error on, it quotes the packet before its translation.
            entry = self._find(sent, now)
            if entry is None or not _is_translated(entry):
                return self._invalid(Reason.ICMP_UNRELATED)
            self.direction = 1 - _direction(entry, sent)
        self.entry = entry
        if packet.dst != quoted.src:
            return self._invalid(Reason.ICMP_MISMATCH)
        return CT_RELATED

    def _live(self, key: Key) -> Entry | None:
        """The flow of `key` unless it had expired by the time of the last packet."""
        entry = self._entries.get(key)
        if entry is not None and entry.expires <= self._now and self._expires:
            self._forget(entry)
            return None
        return entry

    def _find(self, key: Key, now: float) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires <= now and self._expires:
            self._forget(entry)
            self.expired = True
            return None
        return entry

    def _find_or_open(self, key: Key, reply: Key, now: float) -> tuple[Entry, int]:
        """The flow of a packet of a stateless protocol, and the packet's direction."""
        direction = 0
        entry = self._find(key, now)
        if entry is not None:
            direction = _direction(entry, key)
        else:
            entry = Entry(key, reply, now, NO_PEERS)
            self._add(entry, now)
        self.entry = entry
        self.direction = direction
        return entry, direction

    def _add(self, entry: Entry, now: float) -> None:
        if self._count >= self._sweep_at:
            self._make_room(now)
        entry.status = IPS_CONFIRMED
        self._entries[entry.original] = entry
        self._claim_reply(entry, now)
        self._count += 1
        self.created += 1

    def _claim_reply(self, entry: Entry, now: float) -> None:
        """Give a new entry its reply, unless that is the reply of one that goes on.

        A flow to a server may have the reply of one that is translated to it. The kernel then gives
        the later flow another port. Until the capture shows that, packets with this tuple belong
        to the earlier flow, unless it is about to end: it may have ended on the host.
        """
        key = entry.reply
        other = self._entries.get(key)
        if other is None or other is entry or (other.expires <= now and self._expires):
            self._entries[key] = entry
        elif _ends(other):
            self._entries[key] = entry
            self._claims[key] = other
        else:
            self._claims[key] = entry

    def _remove_key(self, key: Key, entry: Entry) -> None:
        """Remove a key of an entry unless it is that of another, or give it to the next one."""
        if self._entries.get(key) is not entry:
            return
        del self._entries[key]
        if self._claims:
            other = self._claims.pop(key, None)
            if other is not None and other.reply == key and not other.gone:
                self._entries[key] = other

    def _forget(self, entry: Entry) -> None:
        self._remove_key(entry.original, entry)
        self._remove_key(entry.reply, entry)
        entry.gone = True
        self._count -= 1

    def _make_room(self, now: float) -> None:
        """Remove expired flows, and if the table stays full, a sixteenth of it.

        A search of all flows happens only after many were added, which bounds its cost per flow.
        """
        if self._expires:
            self._forget_all([entry for entry in self._oldest_first() if entry.expires <= now])
        if self._count >= self._capacity:
            victims = sorted(self._oldest_first(), key=_is_assured)
            self._forget_all(victims[: max(1, self._capacity >> 4)])
        self._sweep_at = min(self._capacity, max(_SWEEP_FROM, 2 * self._count))

    def _oldest_first(self) -> list[Entry]:
        return [entry for key, entry in self._entries.items() if entry.original == key]

    def _forget_all(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._forget(entry)


def _direction(entry: Entry, key: Key) -> int:
    """The direction of `key` in its flow; in a flow of one end with itself all are replies."""
    return 1 if entry.reply == key else 0


def _is_translated(entry: Entry) -> bool:
    return entry.reply != reverse(entry.original)


def _opens_apart(entry: Entry, other: Entry) -> bool:
    """Whether a TCP flow without an answer so far began with another number than `other`."""
    return entry.state == TcpState.SYN_SENT and entry.peers[0].td_end != other.peers[0].td_end


def _ends(entry: Entry) -> bool:
    """Whether a TCP flow is about to end, or over."""
    return TcpState.FIN_WAIT <= entry.state <= TcpState.CLOSE


def _is_assured(entry: Entry) -> bool:
    return entry.status & IPS_ASSURED != 0


def _passed(entry: Entry, direction: int) -> int:
    """The ctstate of a packet that its flow accepts; a reply marks the flow as seen both ways."""
    if direction == 1:
        entry.status |= IPS_SEEN_REPLY
        return CT_ESTABLISHED
    return CT_ESTABLISHED if entry.status & IPS_SEEN_REPLY else CT_NEW


def _key_of_tuple(flow: FlowTuple) -> Key:
    return key_of(flow.src, flow.dst, flow.sport, flow.dport, flow.proto)
