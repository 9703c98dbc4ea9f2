# SPDX-License-Identifier: MIT
"""Compares random SCTP and GRE flows, fragments and IPv6 headers with the live kernel."""

import random

import pytest

from nfq_guard.conntrack.sctp_states import MOVE_INVALID, SCTP_MOVES
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.conntrack.table import CT_ESTABLISHED, CT_INVALID, CT_NEW
from nfq_guard.finding import Reason
from nfq_guard.wire.ipv6 import is_discarded
from tests.fuzz_kernel.fragments import run_fragments
from tests.fuzz_kernel.others import OthersTally, run_others
from tests.support.live import LiveConntrack
from tests.support.packets import A6, B6, ip, udp


def described(tally: OthersTally) -> str:
    return "\n".join("\n".join((*failure.steps, *failure.what, "")) for failure in tally.failures)


@pytest.mark.compiled
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("protocol", "met"),
    [
        (
            "sctp",
            {
                None, Reason.BAD_TAG, Reason.BAD_TRANSITION, Reason.NO_ENTRY, Reason.MALFORMED,
                Reason.BAD_CHECKSUM,
            },
        ),
        ("gre", {None, Reason.MALFORMED}),
    ],
)  # fmt: skip
def test_random_packets(protocol: str, met: set[Reason | None]) -> None:
    tally = OthersTally()
    for number in range(3):
        run_others(protocol, 1, number, tally, 4_000)
    assert not tally.failures, described(tally)
    assert set(tally.causes) == met
    assert {CT_NEW, CT_ESTABLISHED, CT_INVALID} <= set(tally.ctstates)


@pytest.mark.compiled
@pytest.mark.kernel
def test_fragments() -> None:
    """Of both IP versions: overlapping, repeated, contradictory, empty and of odd lengths."""
    tally = OthersTally()
    for number in range(2):
        run_fragments(1, number, tally, 4_000)
    assert not tally.failures, described(tally)
    assert {CT_NEW, CT_INVALID} <= set(tally.ctstates)


def _options(rng: random.Random) -> bytes:
    octets = b""
    for _ in range(rng.randrange(12)):
        kind = rng.choice((0, 0, 1, 1, 5, 7, 0x1E, 0x3E, 0x5E, 0x9E, 0xC2, rng.getrandbits(8)))
        if kind == 0x31:
            continue  # IOAM: depends on the host's settings
        if kind:
            length = rng.choice((0, 1, 2, 2, 3, 4, 5, 6, 8))
            value = bytes(length) if rng.random() < 0.7 else rng.randbytes(length)
            octets += bytes((kind, length if rng.random() < 0.97 else rng.randrange(20))) + value
        else:
            octets += b"\0"
    missing = -(2 + len(octets)) % 8
    return octets + (b"\0" if missing < 2 else bytes((1, missing - 2)) + bytes(missing))[:missing]


@pytest.mark.kernel
def test_hop_by_hop_headers() -> None:
    """A packet that the IP layer discards for such a header reaches no rule, and does not leave."""
    rng = random.Random(1)  # noqa: S311 - reproducible, no secret
    datagram = udp(A6, B6, 1, 2)[40:]
    seen = set()
    with LiveConntrack(DEFAULT_SYSCTLS) as live:
        for _ in range(3000):
            options = _options(rng)
            size = (2 + len(options)) // 8 - 1 if rng.random() < 0.95 else rng.randrange(20)
            octets = ip(A6, B6, 0, bytes((17, size)) + options + datagram)
            if rng.random() < 0.03:
                octets = octets[:4] + rng.randrange(len(octets) - 39).to_bytes(2) + octets[6:]
            discarded = is_discarded(octets)
            seen.add(discarded)
            assert (live.send(octets) is None) is discarded, octets.hex()
    assert seen == {False, True}


def test_a_cell_for_every_state() -> None:
    for rows in SCTP_MOVES:
        assert len(rows) == 256
        assert all(len(row) == 9 and set(row) <= {*range(9), MOVE_INVALID} for row in rows)
