# SPDX-License-Identifier: MIT
"""Headers decoded from octets that scapy built."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Jumbo,
)
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.flow import IPV4, IPV6
from nfq_guard.seqno import Seq
from nfq_guard.wire import tcp
from nfq_guard.wire.checksum import (
    checksum_ok,
    checksum_unfinished,
)
from nfq_guard.wire.ip import BAD_HEADER, decode
from nfq_guard.wire.ipv6 import is_discarded
from nfq_guard.wire.packet import (
    ACK,
    SYN,
    Datagram,
    Malformed,
    Packet,
    Segment,
)
from tests.support.octets import V4, V6, octets_of, problem, read


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
    """Ethernet padding is not payload, but a tail cut by the snapshot length is."""
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


@pytest.mark.parametrize(
    "header",
    [IP(src="10.0.0.1", dst="10.0.0.2", len=0), IPv6(src="::1", dst="::2", plen=0)],
    ids=["v4", "v6"],
)
def test_super_packet_without_a_length_and_without_its_tail(header: Scapy) -> None:
    """What brought its first octets says how long it is."""
    octets = octets_of(header / TCP(flags="A") / bytes(70_000))
    packet = decode(octets[:256], len(octets))
    assert isinstance(packet, Packet)
    assert packet.length == len(octets)
    assert isinstance(packet.l4, Segment)
    assert packet.l4.payload_len == 70_000
    assert checksum_ok(packet, octets[:256]) is None


def test_a_stated_length_counts_more_than_that_of_a_frame() -> None:
    octets = octets_of(V4 / TCP(flags="A") / b"four")
    packet = decode(octets + bytes(16), len(octets) + 16)
    assert isinstance(packet, Packet)
    assert packet.length == len(octets)


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
    """The fixed header is enough to follow a segment; `options_are_cut` reports the rest."""
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
    assert tcp.timestamp_value(segment.options) == 3


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
    assert tcp.timestamp_value(padded) is None


@pytest.mark.parametrize(
    "octets", [b"\x01" * 9 + b"\x05", b"\x05\x01" + b"\x00" * 10, b"\x05\x63" * 6]
)
def test_sack_that_ends_early(octets: bytes) -> None:
    assert tcp.highest_acknowledged(octets, Seq(5)) == 5


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        (b"", None),
        (b"\x01\x01\x08\x0a\xff\x00\x00\x01" + bytes(4), 0xFF000001),
        (b"\x08\x09" + bytes(7) + b"\x08\x0a" + bytes(3) + b"\x02" + bytes(4), 2),
    ],
)
def test_the_clock_of_a_segment(octets: bytes, value: int | None) -> None:
    assert tcp.timestamp_value(octets) == value


def test_timestamps_alone_acknowledge_nothing_more() -> None:
    assert tcp.highest_acknowledged(b"\x01\x01\x08\x0a" + bytes(8), Seq(5)) == 5


@pytest.mark.parametrize("base", [0, 2**31 - 25, 2**32 - 25])
def test_highest_edge_wherever_on_the_circle(base: int) -> None:
    blocks = b"".join(
        struct.pack("!II", (base + left) % 2**32, (base + left + 10) % 2**32) for left in (30, 10)
    )
    ack = Seq(base)
    assert tcp.highest_acknowledged(b"\x05\x12" + blocks, ack) == (base + 40) % 2**32


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


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [[], [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))], [("SAck", (5, 9))]]
    ),
    st.binary(max_size=40),
)
def test_decoding_into_a_segment(
    number: int, options: list[tuple[str, object]], payload: bytes
) -> None:
    """As `decode_segment`, but for timestamps, which nothing that follows a flow reads."""
    whole = bytes(TCP(seq=number, ack=~number & 0xFFFFFFFF, options=options) / payload)
    wanted = tcp.decode_segment(b"abc" + whole, 3, len(whole))
    assert isinstance(wanted, Segment)
    found = Segment(0, 0, Seq(0), Seq(0), 0, 0, 0, b"x", 0)
    assert tcp.decode_into(found, b"abc" + whole, 3, len(whole))
    if len(options) == 3:
        wanted.options = b""
    assert found == wanted


@pytest.mark.parametrize(
    ("octets", "wire_len"),
    [(bytes(TCP()), 19), (bytes(TCP(dataofs=4)), 20), (bytes(TCP(dataofs=6)), 20)],
)
def test_segments_that_cannot_be_decoded_into_one(octets: bytes, wire_len: int) -> None:
    before = Segment(1, 2, Seq(3), Seq(4), 5, 6, 7, b"x", 8)
    found = Segment(1, 2, Seq(3), Seq(4), 5, 6, 7, b"x", 8)
    assert isinstance(tcp.decode_segment(octets, 0, wire_len), str)
    assert not tcp.decode_into(found, octets, 0, wire_len)
    assert found == before


@pytest.mark.parametrize(("first", "header"), [(0x45, 20), (0x60, 40)])
def test_ip_header_that_was_not_captured_whole(first: int, header: int) -> None:
    octets = bytes([first]) + bytes(header - 2)
    for wire_len in (0, header - 1):
        packet = decode(octets, wire_len)
        assert isinstance(packet, Malformed)
        assert (packet.problem in BAD_HEADER, packet.snapped) == (True, False)
    packet = decode(octets, header)
    assert isinstance(packet, Malformed)
    assert (packet.problem in BAD_HEADER, packet.snapped) == (False, True)
