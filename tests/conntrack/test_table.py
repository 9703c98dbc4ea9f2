# SPDX-License-Identifier: MIT
"""The flow table: lookups, expiry and bounds; datagrams, ICMP messages and broken packets."""

from collections.abc import Callable

import pytest

from nfq_guard.conntrack.entry import key_of, reverse
from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import (
    CT_ESTABLISHED,
    CT_INVALID,
    CT_NEW,
    CT_RELATED,
    CT_UNTRACKED,
    CTSTATES,
    FlowTable,
)
from nfq_guard.finding import Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IPS_ASSURED,
    IPS_SEEN_REPLY,
    IPV4,
    IPV6,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    CtState,
    Evidence,
    FlowTuple,
    Nat,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Datagram, IcmpMessage, Malformed, Packet, Segment
from tests.support.conversation import Conversation
from tests.support.flow import Flow
from tests.support.trace import Ends, parse

A, B, C, D = b"\x0a\0\0\1", b"\x0a\0\0\2", b"\x0a\0\0\3", b"\x0a\0\0\4"
A6, B6 = bytes(15) + b"\1", bytes(15) + b"\2"
LINK_LOCAL = b"\xfe\x80" + bytes(13) + b"\1"
L4 = Segment | Datagram | IcmpMessage | None


def packet(src: bytes, dst: bytes, proto: int, l4: L4, hop_limit: int = 64) -> Packet:
    family = IPV4 if len(src) == 4 else IPV6
    return Packet(family, src, dst, proto, 60, 20, hop_limit, 0, False, l4)


def udp(src: bytes, dst: bytes, sport: int, dport: int) -> Packet:
    return packet(src, dst, PROTO_UDP, Datagram(sport, dport, 8, 0))


def icmp(src: bytes, dst: bytes, kind: int, identifier: int = 7, hop_limit: int = 64) -> Packet:
    proto = PROTO_ICMP if len(src) == 4 else PROTO_ICMPV6
    return packet(src, dst, proto, IcmpMessage(kind, 0, identifier, 0, False, None), hop_limit)


def error(src: bytes, dst: bytes, kind: int, quoted: FlowTuple | None) -> Packet:
    proto = PROTO_ICMP if len(src) == 4 else PROTO_ICMPV6
    return packet(src, dst, proto, IcmpMessage(kind, 0, 0, 0, True, quoted))


def syn(port: int) -> Packet:
    return Ends(ports=(port, 80)).packet(parse("> S 0:0(0)"))


@pytest.fixture
def table() -> FlowTable:
    return FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)


def test_codes_are_places_of_words() -> None:
    assert CTSTATES[CT_UNTRACKED] is CtState.UNTRACKED
    assert len(CTSTATES) == len(CtState)


def test_datagrams(table: FlowTable) -> None:
    assert table.track(udp(A, B, 1, 2), 0.0) == CT_NEW
    assert table.track(udp(A, B, 1, 2), 0.0) == CT_NEW
    assert table.track(udp(B, A, 2, 1), 1.0) == CT_ESTABLISHED
    assert table.direction == 1
    assert table.track(udp(A, B, 1, 2), 1.0) == CT_ESTABLISHED
    assert table.state == 0
    snapshot = table.snapshot()
    assert snapshot
    assert snapshot.peers is None
    assert snapshot.original == FlowTuple(PROTO_UDP, A, B, 1, 2)
    assert snapshot.reply == FlowTuple(PROTO_UDP, B, A, 2, 1)
    assert (snapshot.timeout_s, snapshot.status & IPS_ASSURED) == (30, 0)


def test_datagrams_that_go_on_are_a_stream(table: FlowTable) -> None:
    table.track(udp(A, B, 1, 2), 0.0)
    table.track(udp(B, A, 2, 1), 1.0)
    table.track(udp(A, B, 1, 2), 2.5)
    snapshot = table.snapshot()
    assert snapshot
    assert snapshot.timeout_s == 120
    assert snapshot.status & IPS_ASSURED


def test_datagrams_without_an_answer_expire(table: FlowTable) -> None:
    table.track(udp(A, B, 1, 2), 0.0)
    assert table.track(udp(B, A, 2, 1), 30.0) == CT_NEW


def test_protocol_without_a_tracker(table: FlowTable) -> None:
    assert table.track(packet(A, B, 253, None), 0.0) == CT_NEW
    assert table.track(packet(B, A, 253, None), 599.0) == CT_ESTABLISHED
    assert table.snapshot()
    assert table.track(packet(B, A, 253, None), 9999.0) == CT_NEW


def test_no_next_header_and_icmp_of_the_other_family(table: FlowTable) -> None:
    assert table.track(packet(A6, B6, 59, None), 0.0) == CT_INVALID
    assert table.track(packet(A6, B6, PROTO_ICMP, None), 0.0) == CT_INVALID
    assert table.track(packet(A, B, PROTO_ICMPV6, None), 0.0) == CT_INVALID
    assert table.reason is Reason.UNSUPPORTED
    assert table.snapshot() is None


def test_fragment_that_nobody_put_together(table: FlowTable) -> None:
    late = Packet(IPV4, A, B, PROTO_UDP, 60, 20, 64, 800, False, None)
    assert table.track(late, 0.0) == CT_INVALID
    assert table.reason is Reason.UNSUPPORTED


def test_malformed(table: FlowTable) -> None:
    assert table.track(Malformed("too short"), 0.0) == CT_INVALID
    assert table.reason is Reason.MALFORMED
    assert table.state == 0
    assert table.snapshot() is None


def test_header_that_the_capture_cut_off(table: FlowTable) -> None:
    assert table.track(Malformed("cut off", snapped=True), 0.0) == CT_INVALID
    assert table.reason is Reason.UNSUPPORTED


def test_checksum(table: FlowTable) -> None:
    assert table.track(udp(A, B, 1, 2), 0.0, False) == CT_INVALID
    assert table.reason is Reason.BAD_CHECKSUM
    assert table.track(udp(A, B, 1, 2), 0.0, True) == CT_NEW
    careless = FlowTable(KERNEL_6_1, Sysctls(checksum=False))
    assert careless.track(udp(A, B, 1, 2), 0.0, False) == CT_NEW


@pytest.mark.parametrize(
    ("src", "dst", "request_type", "answer_type"),
    [(A, B, 8, 0), (A, B, 13, 14), (A6, B6, 128, 129)],
)
def test_echo(
    table: FlowTable, src: bytes, dst: bytes, request_type: int, answer_type: int
) -> None:
    assert table.track(icmp(src, dst, request_type), 0.0) == CT_NEW
    assert table.track(icmp(dst, src, answer_type), 0.0) == CT_ESTABLISHED
    snapshot = table.snapshot()
    assert snapshot
    assert snapshot.reply.dport == answer_type << 8
    assert table.track(icmp(src, dst, request_type), 0.0) == CT_ESTABLISHED


def test_answer_to_nothing(table: FlowTable) -> None:
    for answer in (icmp(A, B, 0), icmp(A, B, 10), icmp(A6, B6, 129), icmp(A6, B6, 200)):
        assert table.track(answer, 0.0) == CT_INVALID
        assert table.reason is Reason.NO_ENTRY
    assert table.track(icmp(A, B, 19), 0.0) == CT_INVALID
    assert table.reason is Reason.MALFORMED
    assert len(table) == 0


def test_neighbours_are_left_alone(table: FlowTable) -> None:
    assert table.track(icmp(A6, B6, 135, hop_limit=255), 0.0) == CT_UNTRACKED
    assert table.track(icmp(A6, B6, 143), 0.0) == CT_UNTRACKED


def test_redirect_comes_from_the_link(table: FlowTable) -> None:
    for forged in (icmp(A6, B6, 137, hop_limit=255), icmp(LINK_LOCAL, B6, 137)):
        assert table.track(forged, 0.0) == CT_INVALID
        assert table.reason is Reason.MALFORMED
    true = packet(LINK_LOCAL, B6, PROTO_ICMPV6, IcmpMessage(137, 0, 0, 0, True, None), 255)
    assert table.track(true, 0.0) == CT_INVALID
    assert table.reason is Reason.ICMP_UNRELATED


def test_errors_belong_to_the_flow_that_they_quote(table: FlowTable) -> None:
    table.track(udp(A, B, 1, 2), 0.0)
    sent = FlowTuple(PROTO_UDP, A, B, 1, 2)
    assert table.track(error(C, A, 11, sent), 0.0) == CT_RELATED
    assert table.direction == 1
    assert table.snapshot()
    answered = FlowTuple(PROTO_UDP, B, A, 2, 1)
    assert table.track(error(C, B, 11, answered), 0.0) == CT_RELATED
    assert table.direction == 0


def test_error_to_somebody_else(table: FlowTable) -> None:
    table.track(udp(A, B, 1, 2), 0.0)
    assert table.track(error(B, C, 3, FlowTuple(PROTO_UDP, A, B, 1, 2)), 0.0) == CT_INVALID
    assert table.reason is Reason.ICMP_MISMATCH
    snapshot = table.snapshot()
    assert snapshot
    assert snapshot.direction == 1


def test_error_about_nothing_known(table: FlowTable) -> None:
    for quoted in (FlowTuple(PROTO_UDP, A, B, 1, 2), None):
        assert table.track(error(B, A, 3, quoted), 0.0) == CT_INVALID
        assert table.reason is Reason.ICMP_UNRELATED
        assert table.snapshot() is None


def test_flow_of_an_end_with_itself(table: FlowTable) -> None:
    """Both keys are one; conntrack finds the reply."""
    assert table.track(udp(A, A, 9, 9), 0.0) == CT_NEW
    assert table.track(udp(A, A, 9, 9), 0.0) == CT_ESTABLISHED
    assert table.track(udp(A, A, 9, 9), 999.0) == CT_NEW
    assert len(table) == 1


def test_snapshot_of_a_packet_that_got_nowhere(table: FlowTable) -> None:
    """A segment with broken flags is refused before the lookup; the snapshot finds its flow."""
    table.track(syn(1), 0.0)
    null = Ends(ports=(1, 80)).packet(parse("> - 0:0(0)"))
    assert table.track(null, 1.0) == CT_INVALID
    assert table.reason is Reason.BAD_FLAGS
    snapshot = table.snapshot()
    assert snapshot
    assert snapshot.evidence is table.evidence is Evidence.REPLAY
    assert (snapshot.direction, snapshot.timeout_s) == (0, 119)
    table.track(icmp(A, B, 0), 0.0)
    assert table.snapshot() is None


def test_lookup_finds_both_directions(table: FlowTable) -> None:
    flow = Flow("plain").opened()
    there = FlowTuple(PROTO_TCP, *Ends().addresses, 1024, 1024)
    back = FlowTuple(PROTO_TCP, *Ends().addresses[::-1], 1024, 1024)
    found = flow.table.lookup([there, back, FlowTuple(PROTO_TCP, A, B, 1, 2)])
    assert [one and one.direction for one in found] == [0, 1, None]
    assert found[0]
    assert found[0].status & IPS_SEEN_REPLY
    assert table.lookup([there]) == [None]


def test_snapshot_does_not_change_with_the_flow() -> None:
    flow = Flow("plain").opened()
    before = flow.snapshot
    assert before == flow.snapshot
    flow.passes("> P. 1:101(100) ack 1 win 1000")
    assert before != flow.snapshot


def test_expired_flows_make_room() -> None:
    """Whether or not they are looked up again."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    for number in range(10_000):
        table.track(syn(number), number)
    assert len(table) < 2_000


def test_full_table_forgets_the_oldest_without_assurance() -> None:
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS, capacity=32)
    kept = Flow("plain")
    kept.table = table
    kept.now = 0.0
    kept.opened()
    for number in range(1000):
        table.track(syn(2000 + number), 0.0)
        assert len(table) <= 32
    assert kept.state == "ESTABLISHED"
    assert kept.see("> . 1:1(0) ack 1 win 1000") == "ESTABLISHED"


@pytest.mark.parametrize("expires", [True, False])
def test_full_table_of_assured_flows_forgets_the_oldest(
    expires: bool, make_table: Callable[..., FlowTable]
) -> None:
    table = make_table(expires)
    flows = [Flow("plain", ends=Ends(ports=(port, 80))) for port in range(10)]
    for flow in flows:
        flow.table = table
        flow.opened()
    assert [flow.state for flow in flows] == ["gone"] * 6 + ["ESTABLISHED"] * 4


@pytest.fixture
def make_table() -> Callable[..., FlowTable]:
    def make(expires: bool) -> FlowTable:
        return FlowTable(KERNEL_6_1, Sysctls(expires=expires), capacity=4)

    return make


@pytest.mark.parametrize("captured", [40, 44, 46])
def test_opening_with_cut_options_holds_no_window(captured: int) -> None:
    """Some options of a SYN are missing in the capture: its scale is unknown, as in mid-flow."""
    talk = Conversation()
    talk.open()
    for frame in talk.frames[:2]:
        frame.octets = frame.octets[:captured]
    for start in range(1, 400_000, 20_000):
        talk.server("A", start, 1, length=20_000)
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    codes = [table.track(decode(frame.octets), 0.0) for frame in talk.frames]
    assert CT_INVALID not in codes
    assert table.entry is not None
    assert all(peer.flags & IP_CT_TCP_FLAG_BE_LIBERAL for peer in table.entry.peers)


def answer_of_c() -> Packet | Malformed:
    """The SYN+ACK that `A` gets, as it is before translation: from port 8080 of `C`."""
    answer = Conversation()
    answer.server("SA", 0, 1)
    octets = bytearray(answer.frames[0].octets)
    octets[12:16] = C
    octets[20:22] = (8080).to_bytes(2, "big")
    return decode(bytes(octets))


def test_translated_entry_takes_the_replies_to_its_new_tuple() -> None:
    """A capture shows a packet before and after translation (`FlowTable.translate`)."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    arriving = key_of(A, B, 40000, 80, PROTO_TCP)
    leaving = key_of(A, C, 40000, 8080, PROTO_TCP)
    assert not table.translate(arriving, leaving), "no entry"
    talk = Conversation()
    talk.client("S", 0)
    assert table.track(decode(talk.frames[0].octets), 0.0) == CT_NEW
    assert table.key == arriving
    assert not table.translate(reverse(arriving), leaving), "not its original direction"
    assert not table.translate(arriving, arriving), "no translation"
    assert table.translate(arriving, leaving)
    assert not table.translate(arriving, leaving), "no news"
    assert table.track(answer_of_c(), 0.0) == CT_ESTABLISHED
    assert table.direction == 1
    assert table.key == reverse(arriving)
    entry = table.entry
    assert entry is not None
    assert entry.snapshot(1, 0.0).nat is Nat.DNAT


def test_the_end_of_a_flow_leaves_the_reply_of_another() -> None:
    """One to the server itself has the reply of an earlier one that was translated to it."""
    table = FlowTable(KERNEL_6_1, Sysctls(expires=True))
    talk = Conversation()
    talk.client("S", 0)
    opening = bytearray(talk.frames[0].octets)
    table.track(decode(bytes(opening)), 0.0)
    assert table.translate(key_of(A, B, 40000, 80, PROTO_TCP), key_of(A, C, 40000, 8080, PROTO_TCP))
    translated = table.entry
    opening[16:20] = C
    opening[22:24] = (8080).to_bytes(2, "big")
    table.track(decode(bytes(opening)), 100.0)
    assert table.entry is not translated
    table.track(syn(50000), 150.0)
    # The first has expired, and the table is searched for such.
    for number in range(2000):
        table.track(syn(number), 150.0)
    assert translated is not None
    assert translated.gone
    assert table.track(answer_of_c(), 150.0) == CT_ESTABLISHED


def test_translation_seen_at_a_reply() -> None:
    """What leaves as a reply of a known flow arrives as the reply that conntrack expects."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    talk = Conversation()
    talk.client("S", 0)
    table.track(decode(talk.frames[0].octets), 0.0)
    leaving = key_of(B, A, 80, 40000, PROTO_TCP)
    assert table.translate(key_of(C, A, 8080, 40000, PROTO_TCP), leaving)
    assert table.track(answer_of_c(), 0.0) == CT_ESTABLISHED
    assert table.key == leaving
    assert table.entry is not None
    assert table.entry.snapshot(1, 0.0).nat is Nat.DNAT


def test_another_translation_of_the_same_ports() -> None:
    """The SYN was seen behind its translation alone, beside the entry of the flow before it."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    opening = key_of(A, B, 1, 2, PROTO_UDP)
    for host, seen in ((C, B), (D, D)):
        assert table.track(udp(A, seen, 1, 2), 0.0) == CT_NEW
        assert table.translate(key_of(host, A, 2, 1, PROTO_UDP), reverse(opening))
    assert (len(table), table.created) == (1, 2)
    assert table.track(udp(A, B, 1, 2), 1.0) == CT_NEW
    assert table.track(udp(D, A, 2, 1), 1.0) == CT_ESTABLISHED
    entry = table.entry
    assert entry is not None
    assert (entry.original, entry.reply) == (opening, key_of(D, A, 2, 1, PROTO_UDP))


def test_the_answer_to_a_syn_has_another_tuple() -> None:
    """A capture of what comes in alone shows no more of a translation (`FlowTable.answer`)."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    opening = key_of(A, B, 40000, 80, PROTO_TCP)
    other = key_of(C, A, 8080, 40000, PROTO_TCP)
    assert not table.answer(opening, other), "no entry"
    talk = Conversation()
    talk.client("S", 0)
    table.track(decode(talk.frames[0].octets), 0.0)
    assert not table.answer(opening, reverse(opening)), "no translation"
    assert table.answer(opening, other)
    assert table.track(answer_of_c(), 0.0) == CT_ESTABLISHED
    assert table.key == reverse(opening)
    assert not table.answer(opening, key_of(C, A, 1, 2, PROTO_TCP)), "it has its answer"


def test_an_answer_with_a_damaged_address() -> None:
    """The flow continues with the tuple of its SYN (`FlowTable.separate`)."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    opening = key_of(A, B, 40000, 80, PROTO_TCP)
    table.separate(opening)  # it has no entry
    talk = Conversation()
    talk.open()
    talk.server("PA", 1, 1, length=10)
    table.track(decode(talk.frames[0].octets), 0.0)
    table.separate(opening)  # it has no other tuple
    assert table.answer(opening, key_of(C, A, 8080, 40000, PROTO_TCP))
    assert table.track(answer_of_c(), 0.0) == CT_ESTABLISHED
    table.separate(opening)
    for frame in talk.frames[2:]:
        assert table.track(decode(frame.octets), 0.0) == CT_ESTABLISHED
    assert table.entry is not None
    assert table.entry.snapshot(0, 0.0).nat is Nat.NONE
    assert table.created == 1


def test_source_translation() -> None:
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    talk = Conversation()
    talk.client("S", 0)
    table.track(decode(talk.frames[0].octets), 0.0)
    assert table.translate(key_of(A, B, 40000, 80, PROTO_TCP), key_of(C, B, 50000, 80, PROTO_TCP))
    assert table.entry is not None
    assert table.entry.snapshot(0, 0.0).nat is Nat.SNAT


def test_icmp_error_about_a_flow_without_ports() -> None:
    """Flows of other protocols are kept by their addresses; an error quotes their ports."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    dccp = 33
    assert table.track(packet(A, B, dccp, None), 0.0) == CT_NEW
    quoted = FlowTuple(dccp, A, B, 1000, 2000)
    error = packet(B, A, PROTO_ICMP, IcmpMessage(3, 2, 0, 0, True, quoted))
    assert table.track(error, 0.0) == CT_RELATED


def test_the_halves_of_a_translated_flow_become_one(table: FlowTable) -> None:
    """The capture showed it before and behind a translation, and so as two flows."""
    keys = []
    for source in (A, C):
        assert table.track(udp(source, B, 1, 2), 0.0) == CT_NEW
        assert table.entry is not None
        keys.append(table.entry.original)
    second = table.entry
    assert (len(table), table.created, table.joined) == (2, 2, None)
    assert table.translate(keys[0], keys[1])
    assert (len(table), table.created, table.joined is second) == (1, 1, False)
    assert table.track(udp(B, C, 2, 1), 1.0) == CT_ESTABLISHED
    assert table.entry is second
    assert second is not None
    assert (second.original, second.reply) == (keys[0], reverse(keys[1]))


def test_icmp_errors_about_a_translated_flow(table: FlowTable) -> None:
    """They quote the packet as it left; the answer to it would arrive for the router (6.18.44)."""
    assert table.track(udp(A, B, 1, 2), 0.0) == CT_NEW
    assert table.translate(key_of(A, B, 1, 2, PROTO_UDP), key_of(C, B, 1, 2, PROTO_UDP))
    assert table.track(udp(B, C, 2, 1), 0.0) == CT_ESTABLISHED
    from_outside = error(B, C, 3, FlowTuple(PROTO_UDP, C, B, 1, 2))
    assert (table.track(from_outside, 0.0), table.direction) == (CT_RELATED, 1)
    from_inside = error(A, B, 3, FlowTuple(PROTO_UDP, B, A, 2, 1))
    assert (table.track(from_inside, 0.0), table.direction) == (CT_RELATED, 0)
    for_another = error(B, A, 3, FlowTuple(PROTO_UDP, C, B, 1, 2))
    assert table.track(for_another, 0.0) == CT_INVALID
    reasons = [table.reason]
    # The same two as the router passes them on, which a capture on several interfaces shows.
    assert table.track(error(B, A, 3, FlowTuple(PROTO_UDP, A, B, 1, 2)), 0.0) == CT_RELATED
    assert table.direction == 1
    assert table.track(error(C, B, 3, FlowTuple(PROTO_UDP, B, C, 2, 1)), 0.0) == CT_RELATED
    assert table.direction == 0
    assert table.track(error(C, B, 3, FlowTuple(PROTO_UDP, B, C, 2, 9)), 0.0) == CT_INVALID
    assert [*reasons, table.reason] == [Reason.ICMP_MISMATCH, Reason.ICMP_UNRELATED]


def test_an_expired_flow_does_not_hold_its_translation(table: FlowTable) -> None:
    """The kernel gives the tuple to the next flow; before that, it takes another port."""
    outer = key_of(C, B, 1, 2, PROTO_UDP)
    table.track(udp(A, B, 1, 2), 0.0)
    assert table.translate(key_of(A, B, 1, 2, PROTO_UDP), outer)
    inner = b"\x0a\0\0\4"
    table.track(udp(inner, B, 1, 2), 29.0)
    assert not table.translate(key_of(inner, B, 1, 2, PROTO_UDP), outer)
    table.track(udp(inner, B, 1, 2), 30.0)
    assert table.translate(key_of(inner, B, 1, 2, PROTO_UDP), outer)
    assert table.track(udp(B, C, 2, 1), 31.0) == CT_ESTABLISHED
    assert len(table) == 1


def test_an_expired_flow_does_not_hold_its_reply(table: FlowTable) -> None:
    """As a capture of incoming packets shows it: the SYN+ACK has the outer tuple."""
    reply = key_of(C, A, 8080, 40000, PROTO_TCP)
    for start, port in ((0.0, 40000), (200.0, 40001)):
        talk = Conversation(sport=port)
        talk.client("S", 0)
        table.track(decode(talk.frames[0].octets), start)
        assert table.answer(key_of(A, B, port, 80, PROTO_TCP), reply)
        assert table.track(answer_of_c(), start) == CT_ESTABLISHED


SERVICE = Ends(addresses=(A, B))
DIRECT = Ends(addresses=(A, C), ports=(40000, 8080))
OF_SERVICE = key_of(A, B, 40000, 80, PROTO_TCP)
OF_BOTH = key_of(C, A, 8080, 40000, PROTO_TCP)
"""The reply to a flow to the service, and to one to the server behind it."""


def talked_to_service(table: FlowTable) -> None:
    """Open a flow to the service, whose answers come from the server."""
    table.track(SERVICE.packet(parse("> S 100:100(0)")), 0.0)
    assert table.answer(OF_SERVICE, OF_BOTH)
    for ends, step in ((DIRECT, "< S. 500:500(0) ack 101"), (SERVICE, "> . 101:101(0) ack 501")):
        assert table.track(ends.packet(parse(step)), 0.1) == CT_ESTABLISHED


def test_a_flow_behind_one_that_ends_takes_its_reply(table: FlowTable) -> None:
    """And gives it back if it shows to have another."""
    talked_to_service(table)
    assert table.track(SERVICE.packet(parse("> R 101:101(0)")), 0.2) == CT_ESTABLISHED
    assert table.track(DIRECT.packet(parse("> S 900:900(0)")), 0.3) == CT_NEW
    assert table.track(DIRECT.packet(parse("< S. 700:700(0) ack 901")), 0.4) == CT_ESTABLISHED
    assert table.original_of(OF_BOTH) == reverse(OF_BOTH)
    assert table.translate(reverse(OF_BOTH), key_of(A, C, 41000, 8080, PROTO_TCP))
    assert table.original_of(OF_BOTH) == OF_SERVICE


def test_a_flow_behind_one_that_goes_on_waits_for_its_reply(table: FlowTable) -> None:
    talked_to_service(table)
    assert table.track(DIRECT.packet(parse("> S 900:900(0)")), 0.3) == CT_NEW
    assert table.original_of(OF_BOTH) == OF_SERVICE
    assert not table.answer(OF_SERVICE, OF_BOTH), "it has its answer"


def test_an_opener_has_its_ports_again_with_another_translation(table: FlowTable) -> None:
    talked_to_service(table)
    other = Ends(addresses=(A, D))
    assert table.track(other.packet(parse("> S 900:900(0)")), 0.2) == CT_NEW
    opening = key_of(A, D, 40000, 80, PROTO_TCP)
    assert not table.answer(opening, OF_BOTH), "the first one goes on"
    table.track(SERVICE.packet(parse("> R 101:101(0)")), 0.3)
    assert table.answer(opening, OF_BOTH)
    assert (table.original_of(OF_BOTH), table.original_of(OF_SERVICE)) == (opening, None)


def test_the_answer_to_one_of_two_syns_with_another_number(table: FlowTable) -> None:
    assert table.track(DIRECT.packet(parse("> S 900:900(0)")), 0.0) == CT_NEW
    assert table.original_of(OF_BOTH) == reverse(OF_BOTH)
    assert table.track(SERVICE.packet(parse("> S 100:100(0)")), 0.1) == CT_NEW
    assert table.answer(OF_SERVICE, OF_BOTH)
    assert table.original_of(OF_BOTH) == OF_SERVICE
    assert table.original_of(reverse(OF_BOTH)) == reverse(OF_BOTH)
