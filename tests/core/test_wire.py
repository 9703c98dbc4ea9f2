# SPDX-License-Identifier: MIT
"""Headers decoded from octets that scapy built."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Jumbo,
)
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.flow import IPV4, IPV6, FlowTuple
from nfq_guard.seqno import Seq
from nfq_guard.wire import tcp
from nfq_guard.wire.checksum import (
    checksum_ok,
    checksum_unfinished,
    crc32c,
    header_checksum_ok,
)
from nfq_guard.wire.icmp import is_error_v6
from nfq_guard.wire.ip import decode
from nfq_guard.wire.ipv6 import is_discarded
from nfq_guard.wire.packet import (
    ACK,
    SYN,
    Chunk,
    Datagram,
    GreHeader,
    IcmpMessage,
    Malformed,
    Packet,
    SctpPacket,
    Segment,
    flow_key,
    tuple_of,
)
from tests.support.sctp import chunk, init, sctp

V4 = IP(src="10.0.0.1", dst="10.0.0.2", ttl=9)
V6 = IPv6(src="fd00::1", dst="fd00::2", hlim=9)
HOST_1, HOST_2 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


def octets_of(packet: Scapy) -> bytes:
    return bytes(packet)


def read(octets: bytes) -> Packet:
    packet = decode(octets)
    assert isinstance(packet, Packet)
    return packet


def problem(octets: bytes) -> str:
    packet = decode(octets)
    assert isinstance(packet, Malformed)
    return packet.problem


@pytest.mark.parametrize(("header", "family"), [(V4, IPV4), (V6, IPV6)])
def test_segment(header: Scapy, family: int) -> None:
    octets = octets_of(
        header
        / TCP(sport=1000, dport=80, seq=7, ack=9, flags="PA", window=512, options=[("NOP", None)])
        / b"hello"
    )
    packet = read(octets)
    assert (packet.family, packet.proto, packet.hop_limit) == (family, 6, 9)
    assert packet.length == len(octets)
    segment = packet.l4
    assert isinstance(segment, Segment)
    assert (segment.sport, segment.dport, segment.seq, segment.ack) == (1000, 80, 7, 9)
    assert (segment.window, segment.payload_len, segment.end) == (512, 5, 12)
    assert checksum_ok(packet, octets)


def test_syn_and_fin_take_a_sequence_number_each() -> None:
    segment = read(octets_of(V4 / TCP(seq=2**32 - 1, flags="SF"))).l4
    assert isinstance(segment, Segment)
    assert segment.end == 1


def test_length_is_the_header_s_not_the_capture_s() -> None:
    """Ethernet padding is not payload, and a snapped tail is."""
    octets = octets_of(V4 / TCP(flags="A") / bytes(100))
    for captured in (octets + bytes(6), octets[:60]):
        segment = read(captured).l4
        assert isinstance(segment, Segment)
        assert segment.payload_len == 100
    assert checksum_ok(read(octets[:60]), octets[:60]) is None


def test_super_packet_without_a_length() -> None:
    """Segmentation offload leaves the length field 0 if the length exceeds 16 bits."""
    octets = octets_of(IP(src="10.0.0.1", dst="10.0.0.2", len=0) / TCP() / bytes(70_000))
    assert read(octets).length == 70_040


def test_ipv4_options_move_the_transport_header() -> None:
    octets = octets_of(IP(options=[Raw(b"\x01" * 4)]) / UDP(sport=53, dport=99) / b"x")
    packet = read(octets)
    assert packet.l4_offset == 24
    datagram = packet.l4
    assert isinstance(datagram, Datagram)
    assert (datagram.sport, datagram.dport, datagram.length) == (53, 99, 9)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", "no octets"),
        (b"\x00" * 20, "IP version neither 4 nor 6"),
        (b"\x45" + b"\x00" * 10, "IPv4 header cut short"),
        (b"\x60" + b"\x00" * 30, "IPv6 header cut short"),
        (b"\x44" + octets_of(V4 / TCP())[1:], "IPv4 header length below 5"),
        (b"\x4f" + octets_of(V4 / UDP())[1:], "IPv4 header longer than the packet"),
        (octets_of(IP(len=30) / TCP()), "TCP header cut short"),
        (octets_of(V4 / TCP(dataofs=4)), "TCP data offset below 5"),
        (octets_of(V4 / TCP(dataofs=6)), "TCP header longer than the segment"),
        (octets_of(IP(len=24) / UDP()), "UDP header cut short"),
        (octets_of(V4 / UDP(len=7)), "UDP length below 8"),
        (octets_of(V4 / UDP(len=9)), "UDP length beyond the packet"),
        (octets_of(IP(len=24) / ICMP()), "ICMP header cut short"),
        (octets_of(IPv6(nh=0, plen=4)) + b"\x06\x00\x00\x00", "IPv6 extension header cut short"),
        (
            octets_of(IPv6(nh=60, plen=8)) + b"\x06\x01" + bytes(14),
            "IPv6 extension header cut short",
        ),
        (octets_of(IPv6(nh=60)) + b"\x3c\x00" * 4 * 40, "IPv6 extension header cut short"),
    ],
)
def test_headers_that_contradict_themselves(octets: bytes, expected: str) -> None:
    found = decode(octets)
    assert isinstance(found, Malformed)
    assert found.problem == expected
    assert not found.snapped


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (octets_of(IP(options=[Raw(b"\x01" * 8)]) / TCP())[:24], "the IPv4 header"),
        (octets_of(V4 / TCP())[:30], "the TCP header"),
        (octets_of(V4 / UDP())[:24], "the UDP header"),
        (octets_of(V4 / ICMP())[:24], "the ICMP header"),
    ],
)
def test_a_short_capture_is_not_the_packet_s_fault(octets: bytes, expected: str) -> None:
    found = decode(octets)
    assert isinstance(found, Malformed)
    assert found.problem == f"capture ends inside {expected}"
    assert found.snapped


@pytest.mark.parametrize("captured", [40, 42, 44])
def test_options_cut_by_the_capture(captured: int) -> None:
    """The fixed header is enough to follow a segment; `options_are_cut` tells of the rest."""
    octets = octets_of(V4 / TCP(flags="S", options=[("MSS", 1)]) / bytes(7))
    packet = read(octets[:captured])
    segment = packet.l4
    assert isinstance(segment, Segment)
    assert segment.payload_len == 7
    assert tcp.options_are_cut(packet, segment) is (captured < 44)


def test_extension_cut_by_the_capture() -> None:
    octets = octets_of(V6 / IPv6ExtHdrDestOpt() / TCP())[:44]
    found = decode(octets)
    assert isinstance(found, Malformed)
    assert found.snapped


def test_fragments_hold_no_transport_header_but_the_first() -> None:
    later = read(octets_of(IP(frag=2, proto=6) / Raw(bytes(8))))
    assert (later.fragment_offset, later.l4) == (16, None)
    first = read(octets_of(IP(flags="MF") / UDP(len=3000) / bytes(8)))
    assert first.more_fragments
    assert isinstance(first.l4, Datagram)
    assert checksum_ok(first, b"") is None
    assert checksum_ok(first, bytes(3000)) is None


def test_ipv6_extension_headers() -> None:
    octets = octets_of(
        V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1) / TCP(dport=80)
    )
    packet = read(octets)
    assert (packet.proto, packet.l4_offset, packet.more_fragments) == (6, 64, True)
    assert isinstance(packet.l4, Segment)
    later = read(octets_of(V6 / IPv6ExtHdrFragment(offset=3, nh=6) / Raw(bytes(8))))
    assert (later.fragment_offset, later.l4) == (24, None)
    header = bytes([6, 4]) + bytes(22)
    authenticated = read(octets_of(IPv6(nh=51) / Raw(header) / TCP(dport=80)))
    assert authenticated.l4_offset == 64
    assert read(octets_of(IPv6(nh=59))).l4 is None


def test_ipv6_jumbo_payload() -> None:
    octets = octets_of(IPv6(plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=70_028)]) / TCP())
    assert read(octets).length == 70_068


@pytest.mark.parametrize("options", [b"\x00" * 6, b"\x01\x04" + bytes(4), b"\xc2\x02" + bytes(4)])
def test_ipv6_without_a_jumbo_length(options: bytes) -> None:
    """Payload length 0 and no jumbo option: as long as captured."""
    octets = octets_of(IPv6(nh=0, plen=0)) + b"\x3b\x00" + options
    assert read(octets).length == 48
    assert read(octets_of(IPv6(nh=59, plen=0))).length == 40


def test_hop_by_hop_header_cut_before_its_options() -> None:
    assert problem(octets_of(IPv6(nh=0, plen=0)) + b"\x06\x00") == "IPv6 extension header cut short"


def test_icmp_of_the_other_family_is_no_icmp() -> None:
    assert read(octets_of(IP(proto=58) / Raw(bytes(8)))).l4 is None


def test_icmp_error_quotes_a_flow() -> None:
    inner = IP(src="10.0.0.2", dst="10.9.9.9") / TCP(sport=80, dport=1234)
    message = read(octets_of(V4 / ICMP(type=3, code=4) / inner)).l4
    assert isinstance(message, IcmpMessage)
    assert message.is_error
    assert message.identifier == 0
    assert message.quoted == FlowTuple(6, HOST_2, bytes([10, 9, 9, 9]), 80, 1234)


def test_icmp_error_quotes_an_echo() -> None:
    message = read(octets_of(V4 / ICMP(type=11) / V4 / ICMP(type=8, id=77))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted == FlowTuple(1, HOST_1, HOST_2, 77, 8 << 8)


@pytest.mark.parametrize(
    "inner",
    [TCP(sport=80, dport=1234), UDP(sport=80, dport=1234), ICMP(type=8, id=77)],
)
def test_an_icmp_error_counts_with_the_flow_that_it_quotes(inner: Scapy) -> None:
    there = IP(src="10.0.0.1", dst="10.0.0.2") / inner
    error = read(octets_of(IP(src="10.9.9.9", dst="10.0.0.1") / ICMP(type=3, code=4) / there))
    assert flow_key(error) == flow_key(read(octets_of(there)))
    other = IP(src="10.0.0.1", dst="10.0.0.3") / inner
    assert flow_key(error) != flow_key(read(octets_of(other)))


def test_the_identifier_of_a_query_does_not_make_another_flow() -> None:
    """The sender chooses it: a flood must not get past a rate limit by that."""
    keys = {flow_key(read(octets_of(V4 / ICMP(type=0, id=number)))) for number in range(5)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "inner",
    [
        b"\x45" + bytes(10),
        b"\x60" + bytes(40),
        octets_of(IP(frag=1) / Raw(bytes(8))),
        b"\x44" + octets_of(V4 / TCP())[1:],
        octets_of(V4 / TCP())[:22],
        octets_of(V4 / ICMP())[:24],
    ],
)
def test_icmp_error_that_quotes_too_little(inner: bytes) -> None:
    message = read(octets_of(V4 / ICMP(type=3) / Raw(inner))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is None


def test_icmp_error_quotes_another_protocol() -> None:
    message = read(octets_of(V4 / ICMP(type=3) / IP(src="1.1.1.1", dst="2.2.2.2", proto=50))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is not None
    assert (message.quoted.proto, message.quoted.sport) == (50, 0)


def test_icmp_error_quotes_too_little_of_an_echo() -> None:
    quoted = octets_of(IP(proto=1)) + bytes(4)
    message = read(octets_of(V4 / ICMP(type=3) / Raw(quoted))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is None


def test_icmpv6() -> None:
    inner = IPv6(src="fd00::2", dst="fd00::9") / IPv6ExtHdrDestOpt() / UDP(sport=5, dport=6)
    message = read(octets_of(V6 / ICMPv6DestUnreach() / inner)).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is not None
    assert (message.quoted.proto, message.quoted.dport) == (17, 6)
    echo = read(octets_of(V6 / ICMPv6EchoRequest(id=3))).l4
    assert isinstance(echo, IcmpMessage)
    assert (echo.is_error, echo.identifier) == (False, 3)
    assert is_error_v6(137)
    assert not is_error_v6(136)


@pytest.mark.parametrize(
    "inner",
    [
        b"\x60" + bytes(20),
        octets_of(V4 / TCP()) + bytes(20),
        octets_of(IPv6(nh=60, plen=2))[:40],
        octets_of(V6 / IPv6ExtHdrFragment(offset=1)) + bytes(8),
    ],
)
def test_icmpv6_error_that_quotes_too_little(inner: bytes) -> None:
    message = read(octets_of(V6 / ICMPv6DestUnreach() / Raw(inner))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is None


def test_options() -> None:
    octets = octets_of(
        V4
        / TCP(
            flags="S",
            options=[
                ("MSS", 1460),
                ("WScale", 200),
                ("SAckOK", b""),
                ("Timestamp", (3, 4)),
                ("SAck", (10, 20, 30, 40)),
            ],
        )
    )
    segment = read(octets).l4
    assert isinstance(segment, Segment)
    options = tcp.parse_options(segment.options)
    assert options.mss == 1460
    assert options.window_scale == tcp.MAX_WINDOW_SCALE
    assert options.sack_permitted
    assert options.timestamps == (3, 4)
    assert options.sack_blocks == ((10, 20), (30, 40))
    assert tcp.highest_acknowledged(segment.options, segment.seq) == 40


@pytest.mark.parametrize(
    "octets",
    [
        b"\x00\x03\x03\x07",
        b"\x03",
        b"\x03\x01\x07",
        b"\x03\x09\x07",
        b"\x02\x03\x00\x03\x02",
        b"\x04\x03\x00\x08\x02\x05\x03\x00",
        b"\x01\x01\x01\x01",
    ],
)
def test_options_that_end_early_or_have_the_wrong_length(octets: bytes) -> None:
    assert tcp.parse_options(octets) == tcp.TcpOptions()
    padded = octets + b"\x00" * 12
    assert tcp.highest_acknowledged(padded, Seq(5)) == 5


@pytest.mark.parametrize(
    "octets", [b"\x01" * 9 + b"\x05", b"\x05\x01" + b"\x00" * 10, b"\x05\x63" * 6]
)
def test_sack_that_ends_early(octets: bytes) -> None:
    assert tcp.highest_acknowledged(octets, Seq(5)) == 5


def test_timestamps_alone_acknowledge_nothing_more() -> None:
    assert tcp.highest_acknowledged(b"\x01\x01\x08\x0a" + bytes(8), Seq(5)) == 5


@pytest.mark.parametrize("base", [0, 2**31 - 25, 2**32 - 25])
def test_highest_edge_wherever_on_the_circle(base: int) -> None:
    blocks = b"".join(
        struct.pack("!II", (base + left) % 2**32, (base + left + 10) % 2**32) for left in (30, 10)
    )
    ack = Seq(base)
    assert tcp.highest_acknowledged(b"\x05\x12" + blocks, ack) == (base + 40) % 2**32


@pytest.mark.parametrize("octets", [octets_of(V4 / UDP() / b"abc"), octets_of(V6 / UDP() / b"abc")])
def test_udp_checksum(octets: bytes) -> None:
    assert checksum_ok(read(octets), octets)
    broken = octets[:-1] + b"!"
    assert checksum_ok(read(broken), broken) is False


def test_udp_without_checksum() -> None:
    """RFC 768 allows it; RFC 8200 does not, but conntrack accepts it."""
    octets = octets_of(V4 / UDP(chksum=0) / b"abc")
    assert checksum_ok(read(octets), octets)
    octets = (
        octets_of(V6)[:4]
        + b"\x00\x08\x11\x09"
        + octets_of(V6)[8:]
        + b"\x00\x01\x00\x02\x00\x08\x00\x00"
    )
    assert checksum_ok(read(octets), octets)


def test_icmp_checksum() -> None:
    octets = octets_of(V4 / ICMP() / b"abc")
    assert checksum_ok(read(octets), octets)
    octets = octets_of(V6 / ICMPv6ND_NS())
    assert checksum_ok(read(octets), octets)


# Around those from which the sum is taken otherwise, header included.
LENGTHS = (0, 1, 60, 99, 100, 101, 127, 128, 129, 499, 500, 511, 512, 513, 1023, 1024, 1459)


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xff\0", b"\0\xff", b"\x5a\xa5\x13"])
@pytest.mark.parametrize("family", [4, 6])
def test_checksum_at_the_edges_of_lengths(family: int, filling: bytes) -> None:
    """Odd ones too, and ones only."""
    for length in LENGTHS:
        header = (
            IP(src="10.0.0.1", dst="10.0.0.2") if family == 4 else IPv6(src="fd00::1", dst="::1")
        )
        octets = bytes(header / TCP(sport=1, dport=2, flags="A") / (filling * 2000)[:length])
        assert checksum_ok(read(octets), octets), length
        place = len(octets) - 1
        broken = octets[:place] + bytes([octets[place] ^ 0x10])
        assert checksum_ok(read(broken), broken) is False, length


def test_checksum_of_headers() -> None:
    for header in (IP(src="10.0.0.1"), IP(src="10.0.0.1", options=[IPOption_NOP()] * 4)):
        octets = bytes(header / TCP())
        assert header_checksum_ok(octets)
        assert header_checksum_ok(octets[:10] + b"\0\0" + octets[12:])
        assert not header_checksum_ok(octets[:8] + bytes([octets[8] ^ 1]) + octets[9:])


def test_no_checksum_where_there_is_no_transport_header() -> None:
    octets = octets_of(IP(proto=47))
    assert checksum_ok(read(octets), octets) is None
    assert not checksum_unfinished(read(octets))


def test_unfinished_checksum() -> None:
    """The sum of the pseudo-header alone, which the NIC completes."""
    octets = bytearray(octets_of(V4 / TCP(flags="A") / b"abc"))
    partial = (10 << 8) * 2 + 1 + 2 + 6 + 23
    octets[36:38] = partial.to_bytes(2, "big")
    assert checksum_unfinished(read(bytes(octets)))
    assert checksum_ok(read(bytes(octets)), bytes(octets)) is False


@given(st.binary(max_size=120))
def test_any_octets_decode(octets: bytes) -> None:
    """Any octets decode to a value, and its lengths are consistent."""
    packet = decode(octets)
    if isinstance(packet, Packet):
        checksum_ok(packet, octets)
        checksum_unfinished(packet)
        if isinstance(packet.l4, Segment):
            assert packet.l4.payload_len >= 0
            tcp.parse_options(packet.l4.options)


@given(
    st.sampled_from(
        [
            octets_of(V4 / TCP(flags="S", options=[("MSS", 1460), ("WScale", 7)])),
            octets_of(V6 / IPv6ExtHdrDestOpt() / TCP(flags="A") / b"x"),
            octets_of(V4 / ICMP(type=3) / V4 / UDP()),
        ]
    ),
    st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=4),
    st.integers(0, 100),
)
def test_damaged_packets_decode(octets: bytes, damage: list[tuple[int, int]], kept: int) -> None:
    damaged = bytearray(octets)
    for at, value in damage:
        damaged[at % len(damaged)] = value
    decode(bytes(damaged)[:kept])


def test_flags_are_the_header_s_bits() -> None:
    segment = read(octets_of(V4 / TCP(flags="SA"))).l4
    assert isinstance(segment, Segment)
    assert segment.flags == SYN | ACK


@given(
    payload=st.binary(max_size=64).flatmap(
        lambda head: st.integers(0, 5000).map(lambda size: (head * (size + 1))[:size])
    ),
    family=st.sampled_from([V4, V6]),
)
def test_checksum_of_any_length(payload: bytes, family: Scapy) -> None:
    """Against scapy, which computes it another way; one flipped bit is detected."""
    octets = octets_of(family / TCP() / Raw(payload))
    assert checksum_ok(read(octets), octets)
    broken = octets[:-1] + bytes([octets[-1] ^ 1])
    assert checksum_ok(read(broken), broken) is False


@pytest.mark.parametrize("size", [1, 255, 300, 511, 600, 1025, 2047, 3000])
def test_checksum_of_any_size(size: int) -> None:
    """Long packets are summed another way than short ones."""
    octets = octets_of(V4 / UDP(sport=5, dport=6) / (b"\x5a\xc3\x01" * size)[:size])
    assert checksum_ok(read(octets), octets) is True
    broken = octets[:-1] + bytes([octets[-1] ^ 1])
    assert checksum_ok(read(broken), broken) is False


def test_unquoted_icmp_error_has_the_key_of_its_ends() -> None:
    error = read(octets_of(V4 / ICMP(type=3, code=1)))
    echo = read(octets_of(V4 / ICMP(type=8, id=77)))
    assert flow_key(error) == flow_key(echo)
    later = read(octets_of(IP(src="10.0.0.1", dst="10.0.0.2", proto=1, frag=2) / Raw(bytes(8))))
    assert flow_key(later) == flow_key(echo)


def ended(kind: int, body: bytes, family: int = IPV4) -> bytes:
    """A packet of IP protocol `kind`."""
    header = IP(proto=kind) if family == IPV4 else IPv6(nh=kind)
    return octets_of(header / Raw(body))


def test_sctp() -> None:
    octets = sctp(HOST_1, HOST_2, 1, 2, 77, chunk(0, b"abcde", 3), init(2, 9), chunk(64))
    packet = read(octets)
    assert packet.l4 == SctpPacket(
        1, 2, 77, crc32c(octets[20:28] + bytes(4) + octets[32:]),
        (Chunk(0, 3, 9, -1), Chunk(2, 0, 20, 9), Chunk(64, 0, 4, -1)), True,
    )  # fmt: skip
    assert checksum_ok(packet, octets)
    assert not checksum_unfinished(packet)
    damaged = octets[:-1] + b"\1"
    assert checksum_ok(read(damaged), damaged) is False
    unfinished = octets[:28] + bytes(4) + octets[32:]
    assert checksum_unfinished(read(unfinished))
    assert tuple_of(packet) == FlowTuple(132, HOST_1, HOST_2, 1, 2)
    assert flow_key(packet) == (132, HOST_1, HOST_2, 1, 2)


def test_crc32c() -> None:
    """The check value of the polynomial."""
    assert crc32c(b"123456789") == 0xE3069283


def test_sctp_ends_with_a_chunk_without_a_length() -> None:
    octets = sctp(HOST_1, HOST_2, 1, 2, 77, chunk(0), b"\0\0\0\0", chunk(1))
    found = read(octets).l4
    assert isinstance(found, SctpPacket)
    assert [one.length for one in found.chunks] == [4, 0]


@pytest.mark.parametrize("captured", [31, 40, 51])
def test_sctp_cut_by_the_capture(captured: int) -> None:
    """In its header or in an INIT nothing can be said; behind that, chunks are missing."""
    octets = sctp(HOST_1, HOST_2, 1, 2, 0, init(1, 9))
    found = decode(octets[:captured])
    assert isinstance(found, Malformed)
    assert (found.problem, found.snapped) == ("capture ends inside the SCTP header", True)
    two = read(sctp(HOST_1, HOST_2, 1, 2, 0, chunk(0, bytes(8)), chunk(3))[:36]).l4
    assert isinstance(two, SctpPacket)
    assert (len(two.chunks), two.whole) == (1, False)


def test_sctp_cut_short() -> None:
    assert problem(ended(132, bytes(11))) == "SCTP header cut short"
    found = read(sctp(HOST_1, HOST_2, 1, 2, 0, init(1, 9)[:16])).l4
    assert isinstance(found, SctpPacket)
    assert found.chunks[0].initiate_tag == -1


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"\0\0\x08\0" + bytes(20), GreHeader(0, 0)),
        (b"\x30\x01\x88\x0b\0\4\0\7", GreHeader(1, 7)),
        (b"\x30\x01\x88\x0b\0\4\0", GreHeader(0, 0)),
        (b"", GreHeader(0, 0)),
    ],
)
def test_gre(body: bytes, header: GreHeader) -> None:
    packet = read(ended(47, body))
    assert packet.l4 == header
    assert flow_key(packet) == (47, packet.src, packet.dst, 0, 0)
    assert checksum_ok(packet, ended(47, body)) is None
    assert not checksum_unfinished(packet)


def test_gre_that_is_refused() -> None:
    assert problem(ended(47, b"\0\1\x08\0" + bytes(4))).startswith("GRE version 1")
    found = decode(ended(47, b"\0\1\x88\x0b" + bytes(4))[:26])
    assert isinstance(found, Malformed)
    assert (found.problem, found.snapped) == ("capture ends inside the GRE header", True)


@pytest.mark.parametrize(
    ("body", "call"),
    [(b"\0\1\x88\x0b\0\4\0\7", 7), (b"\0\0\x08\0", 0), (b"\0\1\x08\0" + bytes(4), None)],
)
def test_icmp_error_about_gre(body: bytes, call: int | None) -> None:
    message = read(octets_of(V4 / ICMP(type=3) / Raw(ended(47, body)))).l4
    assert isinstance(message, IcmpMessage)
    assert (None if message.quoted is None else message.quoted.dport) == call


def test_a_datagram_shorter_than_its_packet() -> None:
    """Conntrack sums all that follows the IP header."""
    whole = octets_of(V4 / UDP(sport=1, dport=2) / b"abcd")
    short = whole[:24] + b"\0\x09" + whole[26:]
    packet = read(short)
    assert isinstance(packet.l4, Datagram)
    assert packet.l4.length == 9
    assert not checksum_ok(packet, short)
    changed = bytearray(short)
    changed[26:28] = (int.from_bytes(short[26:28]) + 3).to_bytes(2)
    assert checksum_ok(read(bytes(changed)), bytes(changed))


@pytest.mark.parametrize("count", [32, 33, 100])
def test_any_number_of_extension_headers(count: int) -> None:
    options = b"\1\4\0\0\0\0"
    chain = b"".join(bytes((60 if left else 6, 0)) + options for left in reversed(range(count)))
    packet = read(octets_of(IPv6(nh=60) / Raw(chain) / TCP(dport=80)))
    assert packet.l4_offset == 40 + 8 * count
    assert isinstance(packet.l4, Segment)


def behind_options(options: bytes, *, stated: int | None = None) -> bytes:
    """A datagram behind a hop-by-hop header with these options, padded by 0 to 7 octets."""
    missing = -(2 + len(options)) % 8
    if missing:
        options += b"\0" if missing == 1 else bytes((1, missing - 2)) + bytes(missing - 2)
    header = bytes((17, (2 + len(options)) // 8 - 1)) + options
    whole = IPv6(nh=0, src="fd00::1", dst="fd00::2") / Raw(header) / Raw(bytes(UDP()))
    octets = octets_of(whole)
    return octets if stated is None else octets[:4] + stated.to_bytes(2) + octets[6:]


ALERT = b"\5\2\0\0"
SKIPPED = b"\x1e\2ab"


@pytest.mark.parametrize(
    ("octets", "discarded"),
    [
        (octets_of(IPv6() / UDP()), False),
        (octets_of(IPv6(src="ff02::1") / UDP()), True),
        (octets_of(IPv6(dst="ff02::1") / UDP()), False),
        (octets_of(IPv6(dst="ff01::1") / UDP()), True),
        (octets_of(IPv6(dst="ff10::1") / UDP()), True),
        (behind_options(ALERT), False),
        (behind_options(b"\5\4\0\0\0\0"), True),
        (behind_options(SKIPPED * 8), False),
        (behind_options(SKIPPED * 9), True),
        (behind_options(b"\x5e\2ab"), True),
        (behind_options(b"\7\x08" + bytes(8)), True),
        (behind_options(b"\x9e\2ab"), True),
        (behind_options(b"\xde\2ab"), True),
        (behind_options(bytes(6)), False),
        (behind_options(bytes(7) + SKIPPED), False),
        (behind_options(bytes(8)), True),
        (behind_options(b"\1\x05" + bytes(5) + SKIPPED), False),
        (behind_options(b"\1\x06" + bytes(6)), True),
        (behind_options(b"\1\4abcd"), True),
        (behind_options(b"\x1e\x09abcd"), True),
        (behind_options(b"\1\3" + bytes(3) + b"\x1e"), True),
        (behind_options(b"\xc2\4" + (17).to_bytes(4)), True),
        (behind_options(b"\xc2\4" + (70_000).to_bytes(4)), True),
        (behind_options(b"\xc2\4" + (70_000).to_bytes(4), stated=0), False),
        (behind_options(b"\xc2\5" + (70_000).to_bytes(5), stated=0), True),
        (behind_options(b"\0\0\xc2\4" + (70_000).to_bytes(4), stated=0), True),
        (behind_options(ALERT, stated=4), True),
        (behind_options(SKIPPED * 4, stated=16), True),
        (behind_options(b"\x5e\2ab")[:44], False),
        (behind_options(b"\x5e\2ab" + SKIPPED * 3)[:50], False),
    ],
)
def test_headers_for_which_linux_discards_a_packet(octets: bytes, discarded: bool) -> None:
    assert is_discarded(octets) is discarded
