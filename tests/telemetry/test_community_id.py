# SPDX-License-Identifier: MIT
"""Community IDs, compared with those of Wireshark."""

import io
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import RAW
from nfq_guard.capture.writer import PcapngWriter
from nfq_guard.telemetry.community_id import community_id
from nfq_guard.wire.ip import decode

FOUR = IP(src="192.0.2.77", dst="198.51.100.5")
BACK = IP(src="198.51.100.5", dst="192.0.2.77")
SELF = IP(src="192.0.2.77", dst="192.0.2.77")
SIX = IPv6(src="2001:db8::9", dst="2001:db8::1")

PACKETS: list[Scapy] = [
    FOUR / TCP(sport=40_000, dport=443, flags="A"),
    BACK / TCP(sport=443, dport=40_000, flags="PA") / Raw(b"text"),
    SELF / TCP(sport=9, dport=8, flags="S"),
    FOUR / UDP(sport=53, dport=5353) / Raw(b"text"),
    SIX / TCP(sport=1, dport=65_535, flags="R"),
    SIX / UDP(sport=65_535, dport=1),
    FOUR / SCTP(sport=2905, dport=2906),
    BACK / SCTP(sport=2906, dport=2905),
    *(FOUR / ICMP(type=kind) for kind in (0, 8, 13, 14, 15, 16, 17, 18, 9, 10)),
    BACK / ICMP(type=11, code=1) / FOUR / UDP(sport=1, dport=2),
    SIX / ICMPv6EchoRequest(),
    SIX / ICMPv6EchoReply(),
    SIX / ICMPv6ND_NS(),
    SIX / ICMPv6DestUnreach(code=4) / SIX / UDP(sport=1, dport=2),
    FOUR / Raw(b"\0" * 8),
]
# Protocol 46 has no ports.
PACKETS[-1].proto = 46


def of(octets: bytes) -> str | None:
    return community_id(decode(octets))


def test_the_same_as_wireshark(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    for number, packet in enumerate(PACKETS, 1):
        octets = bytes(packet)
        writer.write(Frame(number, 0, RAW, len(octets), octets, 0))
    path = tmp_path / "packets.pcapng"
    path.write_bytes(file.getvalue())
    words = ["tshark", "-r", str(path), "--enable-protocol", "communityid", "-V"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.findall(r"Community ID: (\S+?)\]?$", done.stdout, re.MULTILINE)
    assert [of(bytes(packet)) for packet in PACKETS] == found


def test_both_directions_are_one_flow() -> None:
    assert of(bytes(PACKETS[0])) == of(bytes(PACKETS[1]))
    assert of(bytes(PACKETS[6])) == of(bytes(PACKETS[7]))
    request, reply = FOUR / ICMP(type=8), BACK / ICMP(type=0)
    assert of(bytes(request)) == of(bytes(reply))


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        bytes(FOUR / TCP())[:30],
        bytes(IP(src="192.0.2.1", dst="192.0.2.2", proto=17, frag=3) / Raw(b"\0" * 16)),
        bytes(FOUR / SCTP())[:22],
    ],
)
def test_without_ports_there_is_none(octets: bytes) -> None:
    assert of(octets) is None


@given(st.binary(max_size=120))
def test_any_packet(octets: bytes) -> None:
    found = of(octets)
    assert found is None or (found.startswith("1:") and len(found) == 30)
