# SPDX-License-Identifier: MIT
"""ICMP and ICMPv6: which messages are errors, and the flow that an error quotes."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.flow import FlowTuple
from nfq_guard.wire.icmp import is_error_v6
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import (
    IcmpMessage,
    Malformed,
    flow_key,
)
from tests.support.octets import HOST_1, HOST_2, V4, V6, octets_of, read


def test_icmp_of_the_other_family_is_no_icmp() -> None:
    assert read(octets_of(IP(proto=58) / Raw(bytes(8)))).l4 is None


def test_icmp_error_quotes_a_flow() -> None:
    inner = IP(src="10.0.0.2", dst="10.9.9.9") / TCP(sport=80, dport=1234)
    message = read(octets_of(V4 / ICMP(type=3, code=4) / inner)).l4
    assert isinstance(message, IcmpMessage)
    assert message.is_error
    assert message.identifier == 0
    assert message.quoted == FlowTuple(6, HOST_2, bytes([10, 9, 9, 9]), 80, 1234)


@pytest.mark.parametrize("kind", [128, 129, 139, 140])
def test_messages_of_icmpv6_with_an_identifier(kind: int) -> None:
    """Echoes and node information: conntrack pairs requests and replies by it."""
    message = read(octets_of(IPv6(nh=58) / Raw(bytes((kind, 0, 0, 0, 0, 7, 0, 1))))).l4
    assert isinstance(message, IcmpMessage)
    assert (message.is_error, message.identifier) == (False, 7)


def test_icmp_error_quotes_an_echo() -> None:
    message = read(octets_of(V4 / ICMP(type=11) / V4 / ICMP(type=8, id=77))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted == FlowTuple(1, HOST_1, HOST_2, 77, 8 << 8)


@pytest.mark.parametrize(
    ("quoting", "needed"),
    [
        (V4 / ICMP(type=3, code=4) / V4 / TCP(sport=80, dport=1234), 52),
        (V4 / ICMP(type=11) / V4 / ICMP(type=8, id=77), 56),
        (V4 / ICMP(type=3) / IP(proto=47) / Raw(b"\x30\x01\x88\x0b\0\4\0\7"), 56),
        (V6 / ICMPv6PacketTooBig() / V6 / TCP(sport=80, dport=1234), 92),
        (V6 / ICMPv6PacketTooBig() / V6 / IPv6ExtHdrDestOpt() / UDP(sport=80, dport=1234), 100),
    ],
)
def test_quote_cut_by_the_capture(quoting: Scapy, needed: int) -> None:
    """Too little of a quote is in the file, not in the error, which had an entry."""
    octets = octets_of(quoting)
    for captured in range(28 if IP in quoting else 48, needed):
        found = decode(octets[:captured])
        assert isinstance(found, Malformed), captured
        assert found.snapped
        assert found.problem == "capture ends inside the headers that an ICMP error quotes"
    whole = read(octets).l4
    cut = read(octets[:needed]).l4
    assert isinstance(whole, IcmpMessage)
    assert isinstance(cut, IcmpMessage)
    assert cut.quoted == whole.quoted
    assert whole.quoted is not None


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
    """The sender chooses it, and a flood must not evade a rate limit by that."""
    keys = {flow_key(read(octets_of(V4 / ICMP(type=0, id=number)))) for number in range(5)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "inner",
    [
        b"\x45" + bytes(10),
        octets_of(IP(frag=1) / Raw(bytes(8))),
        octets_of(V4 / TCP())[:22],
        octets_of(V4 / ICMP())[:24],
    ],
)
def test_icmp_error_that_quotes_too_little(inner: bytes) -> None:
    message = read(octets_of(V4 / ICMP(type=3) / Raw(inner))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is None


@pytest.mark.parametrize(
    ("first", "ports"),
    [
        # The version, which nobody checks, and the length in words.
        (0x65, (5, 6)),
        (0x05, (5, 6)),
        (0x44, (0xC0A8, 0x0009)),  # the destination address
        (0x40, (0x4000, 28)),  # the first four octets
    ],
)
def test_icmp_error_quotes_a_damaged_header(first: int, ports: tuple[int, int]) -> None:
    """Conntrack takes the tuple from where the header says that it ends."""
    inner = bytearray(octets_of(IP(src="1.1.1.1", dst="192.168.0.9") / UDP(sport=5, dport=6)))
    inner[0] = first
    message = read(octets_of(V4 / ICMP(type=3) / Raw(bytes(inner)))).l4
    assert isinstance(message, IcmpMessage)
    source, destination = bytes([1, 1, 1, 1]), bytes([192, 168, 0, 9])
    assert message.quoted == FlowTuple(17, source, destination, *ports)


@pytest.mark.parametrize("first", [0x40, 0x00])
def test_icmpv6_error_quotes_another_version(first: int) -> None:
    inner = bytearray(octets_of(IPv6(src="fd00::2", dst="fd00::9") / UDP(sport=5, dport=6)))
    inner[0] = first
    message = read(octets_of(V6 / ICMPv6DestUnreach() / Raw(bytes(inner)))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is not None
    assert (message.quoted.sport, message.quoted.dport) == (5, 6)


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
        octets_of(IPv6(nh=60, plen=2))[:40],
        octets_of(V6 / IPv6ExtHdrFragment(offset=1)) + bytes(8),
    ],
)
def test_icmpv6_error_that_quotes_too_little(inner: bytes) -> None:
    message = read(octets_of(V6 / ICMPv6DestUnreach() / Raw(inner))).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is None


def test_unquoted_icmp_error_has_the_key_of_its_ends() -> None:
    error = read(octets_of(V4 / ICMP(type=3, code=1)))
    echo = read(octets_of(V4 / ICMP(type=8, id=77)))
    assert flow_key(error) == flow_key(echo)
    later = read(octets_of(IP(src="10.0.0.1", dst="10.0.0.2", proto=1, frag=2) / Raw(bytes(8))))
    assert flow_key(later) == flow_key(echo)


def redirect(option: bytes, *, code: int = 0, quoted: bytes = b"") -> bytes:
    """An IPv6 redirect with the option, whose data is a quoted packet."""
    body = bytes((137, code)) + bytes(38) + option + quoted
    return octets_of(IPv6(src="fe80::1", dst="fd00::2", hlim=255, nh=58) / Raw(body))


QUOTED = octets_of(IPv6(src="fd00::2", dst="fd00::9") / UDP(sport=5, dport=6))
HEADER_OF_QUOTE = b"\4\7" + bytes(6)


def test_redirect_quotes_a_flow() -> None:
    octets = redirect(HEADER_OF_QUOTE, quoted=QUOTED)
    message = read(octets).l4
    assert isinstance(message, IcmpMessage)
    assert message.quoted is not None
    assert (message.quoted.proto, message.quoted.sport, message.quoted.dport) == (17, 5, 6)
    for length in (81, 90, 100):
        cut = decode(octets[:length])
        assert isinstance(cut, Malformed)
        assert cut.snapped


@pytest.mark.parametrize(
    ("option", "code"),
    [(b"", 0), (b"\4", 0), (b"\4\0" + bytes(6), 0), (b"\2\1" + bytes(6), 0), (HEADER_OF_QUOTE, 1)],
)
def test_redirect_that_quotes_nothing(option: bytes, code: int) -> None:
    quoted = QUOTED if len(option) == 8 else b""
    message = read(redirect(option, code=code, quoted=quoted)).l4
    assert isinstance(message, IcmpMessage)
    assert (message.is_error, message.quoted) == (True, None)


def test_redirect_that_ends_in_its_header() -> None:
    cut = decode(octets_of(IPv6(nh=58) / Raw(bytes((137,)) + bytes(38))))
    assert isinstance(cut, Malformed)
    assert (cut.problem, cut.snapped) == ("ICMPv6 redirect cut short", False)
