# SPDX-License-Identifier: MIT
"""Packets as octets, decoded."""

from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    IPv6,
)
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.flow import IPV4
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import (
    Malformed,
    Packet,
)

V4 = IP(src="10.0.0.1", dst="10.0.0.2", ttl=9)


V6 = IPv6(src="fd00::1", dst="fd00::2", hlim=9)


HOST_1 = bytes([10, 0, 0, 1])


HOST_2 = bytes([10, 0, 0, 2])


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


def ended(kind: int, body: bytes, family: int = IPV4) -> bytes:
    """A packet of IP protocol `kind`."""
    header = IP(proto=kind) if family == IPV4 else IPv6(nh=kind)
    return octets_of(header / Raw(body))
