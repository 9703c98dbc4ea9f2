# SPDX-License-Identifier: MIT
"""The checksum of a packet that is too long to be copied whole."""

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Reason
from nfq_guard.flow import IPV4, PROTO_TCP, PROTO_UDP, Evidence, Hook
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import (
    ACK,
    CHECKSUM_GOOD,
    CHECKSUM_UNVERIFIED,
    RST,
    Datagram,
    Packet,
    Queued,
    Segment,
)

_SRC, _DST = b"\n\0\0\1", b"\n\0\0\2"


def _udp(checksum: int = 1) -> Packet:
    datagram = Datagram(53, 5000, 1408, checksum)
    return Packet(IPV4, _SRC, _DST, PROTO_UDP, 1428, 20, 64, 0, False, datagram)


def _tcp(flags: int = ACK) -> Packet:
    segment = Segment(80, 5000, seq(1), seq(2), flags, 100, 1400, b"", 1)
    return Packet(IPV4, _SRC, _DST, PROTO_TCP, 1440, 20, 64, 0, False, segment)


def _reason(
    packet: Packet,
    *,
    copied: int = 256,
    hook: Hook = Hook.PREROUTING,
    checksum: int = CHECKSUM_UNVERIFIED,
    sysctls: Sysctls = DEFAULT_SYSCTLS,
) -> Reason:
    queued = Queued(bytes(copied), hook, "eth0", "", 0, checksum)
    return diagnose(queued, packet, None, Evidence.BPF, KERNEL_6_1, sysctls).reason


@pytest.mark.parametrize("packet", [_udp(), _tcp()])
def test_nothing_else_can_be_the_cause(packet: Packet) -> None:
    assert _reason(packet) is Reason.BAD_CHECKSUM
    assert _reason(packet, copied=28) is Reason.BAD_CHECKSUM


@pytest.mark.parametrize("copied", [256, 1440])
@pytest.mark.parametrize(
    ("checksum", "sysctls", "reason"),
    [
        (CHECKSUM_UNVERIFIED, DEFAULT_SYSCTLS, Reason.BAD_CHECKSUM),
        (CHECKSUM_GOOD, DEFAULT_SYSCTLS, Reason.NO_ENTRY),
        (CHECKSUM_UNVERIFIED, Sysctls(checksum=False), Reason.NO_ENTRY),
    ],
)
def test_a_wrong_one_comes_before_what_the_flow_shows(
    copied: int, checksum: int, sysctls: Sysctls, reason: Reason
) -> None:
    """As in conntrack, whether the packet was copied whole or not."""
    assert _reason(_tcp(RST), copied=copied, checksum=checksum, sysctls=sysctls) is reason


def test_the_kernel_found_it_right_or_did_not_look() -> None:
    assert _reason(_udp(), checksum=CHECKSUM_GOOD) is Reason.RACED
    assert _reason(_udp(), hook=Hook.OUTPUT) is Reason.RACED
    assert _reason(_udp(), sysctls=Sysctls(checksum=False)) is Reason.RACED
    assert _reason(_udp(checksum=0)) is Reason.RACED
    assert _reason(_udp(checksum=0), copied=1428) is Reason.RACED
