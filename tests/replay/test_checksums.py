# SPDX-License-Identifier: MIT
"""Unfinished checksums are told from broken ones."""

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from nfq_guard.replay.checksums import ChecksumJudge, ChecksumMode
from nfq_guard.wire.checksum import checksum_unfinished
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet

GOOD = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / b"hello")


def with_checksum(field: int, octets: bytes = GOOD) -> bytes:
    return octets[:36] + field.to_bytes(2, "big") + octets[38:]


def pseudo_sum() -> int:
    words = [0x0A00, 0x0001, 0x0A00, 0x0002, 6, len(GOOD) - 20]
    return sum(words)


UNFINISHED = with_checksum(pseudo_sum())
BROKEN = with_checksum(0xBEEF)


def judge(mode: ChecksumMode, *packets: bytes) -> list[bool | None]:
    checksums = ChecksumJudge(mode)
    answers: list[bool | None] = []
    for octets in packets:
        packet: Any = decode(octets)
        assert isinstance(packet, Packet)
        answers.append(checksums.ok(packet, octets))
    return answers


def test_unfinished_is_what_linux_leaves() -> None:
    packet = decode(UNFINISHED)
    assert isinstance(packet, Packet)
    assert checksum_unfinished(packet)


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        (ChecksumMode.AUTO, [None, True, None, False]),
        (ChecksumMode.VERIFY, [False, True, False, False]),
        (ChecksumMode.IGNORE, [None, None, None, None]),
    ],
)
def test_modes(mode: ChecksumMode, answers: list[bool | None]) -> None:
    """A source of which no right checksum was seen is taken to be the capturing host."""
    assert judge(mode, BROKEN, GOOD, UNFINISHED, BROKEN) == answers


def test_snapped_cannot_be_told() -> None:
    assert judge(ChecksumMode.VERIFY, GOOD[:-2]) == [None]
