# SPDX-License-Identifier: MIT
"""Generates segments near the bounds of a live window, where verdicts differ.

The next segment is drawn by the flow's state, so that flows open, carry data, close, are reset and
reopened, and every bound is met exactly, missed by one, and missed by far.
"""

import random
import struct
from typing import Final

from nfq_guard.conntrack.states import CLASS_ACK, CLASS_SYN
from nfq_guard.flow import FlowSnapshot, Peer, TcpState
from tests.support.trace import Step

_MASK: Final = 0xFFFFFFFF
_ACK: Final = 0x10
_SYN: Final = 0x02

# Flag combinations with their weights, for each way that a flow behaves.
_ORDERLY: Final = ((0x10, 50), (0x18, 10), (0x02, 6), (0x12, 6), (0x11, 8), (0x04, 4), (0x14, 5))
_ANYTHING: Final = (
    (0x10, 20),
    (0x02, 15),
    (0x12, 15),
    (0x11, 15),
    (0x04, 12),
    (0x14, 12),
    (-1, 11),
)
_OPENING: Final = ((0x02, 80), (0x10, 12), (0x12, 3), (0x04, 2), (0x11, 1), (-1, 2))
_PLACES: Final = (0, 1, 0x7FFFFF00, 0x80000000, 0xFFFFFF00, 0xFFFFFFFF)


def start(rng: random.Random) -> tuple[int, int]:
    """Initial sequence numbers of both sides, often just before a wrap."""
    return _number(rng), _number(rng)


def _number(rng: random.Random) -> int:
    if rng.random() < 0.5:
        return rng.getrandbits(32)
    return (rng.choice(_PLACES) - rng.randrange(0, 3000)) & _MASK


def next_step(
    rng: random.Random, snapshot: FlowSnapshot | None, numbers: tuple[int, int], chaos: float
) -> Step:
    """One more segment.

    Args:
        rng: The random numbers.
        snapshot: The flow so far, original direction first; None without an entry.
        numbers: The initial sequence number of each side.
        chaos: The share, 0 to 1, of choices that ignore the flow's state.
    """
    if snapshot is None or snapshot.peers is None:
        flags = _flags(rng, _OPENING)
        direction = 1 if rng.random() < 0.1 else 0
        return Step(
            direction,
            flags,
            (numbers[direction] + (rng.randrange(0, 4) if rng.random() < 0.3 else 0)) & _MASK,
            (numbers[1 - direction] + 1) & _MASK if flags & _ACK or rng.random() < 0.1 else 0,
            _window(rng),
            _payload(rng, chaos) if rng.random() < 0.2 else 0,
            _options(rng, flags, 0, chaos),
        )
    state = snapshot.state
    if snapshot.last_index in (CLASS_SYN, CLASS_ACK) and rng.random() < 0.08:
        return _answer_to_last(rng, snapshot, numbers)
    if rng.random() >= chaos:
        step = _sensible(rng, snapshot, state, numbers)
        if step is not None:
            return step
    direction = rng.randrange(2)
    sender, receiver = snapshot.peers[direction], snapshot.peers[1 - direction]
    flags = _flags(rng, _ANYTHING if rng.random() < chaos else _ORDERLY)
    payload_len = _payload(rng, chaos)
    seq = _seq(rng, snapshot, sender, receiver, payload_len, numbers[direction])
    ack = _ack(rng, snapshot, sender, receiver, numbers[1 - direction])
    if not flags & _ACK and rng.random() < 0.7:
        ack = 0
    if rng.random() < 0.06 and snapshot.last_dir == direction:
        # The last segment again, so that conntrack counts a retransmission.
        return Step(
            direction, 0x10, snapshot.last_seq, snapshot.last_ack, snapshot.last_win,
            min((snapshot.last_end - snapshot.last_seq) & _MASK, 9000),
        )  # fmt: skip
    return Step(
        direction, flags, seq, ack, _window(rng), payload_len,
        _options(rng, flags, receiver.td_end, chaos),
    )  # fmt: skip


def _answer_to_last(rng: random.Random, snapshot: FlowSnapshot, numbers: tuple[int, int]) -> Step:
    """An answer to the last segment recorded, which conntrack may have ignored."""
    direction = 1 - snapshot.last_dir
    flags, seq, ack = rng.choice(
        (
            (0x12, rng.choice(numbers), snapshot.last_end),
            (0x12, rng.getrandbits(32), snapshot.last_end),
            (0x10, rng.getrandbits(32), snapshot.last_end),
            (0x14, 0, snapshot.last_end),
            (0x04, snapshot.last_ack, 0),
        )
    )
    return Step(direction, flags, seq, ack, _window(rng), 0, _options(rng, flags, ack, 0.1))


def _sensible(
    rng: random.Random, snapshot: FlowSnapshot, state: int, numbers: tuple[int, int]
) -> Step | None:
    """What a well-behaved end would send in this state."""
    assert snapshot.peers is not None
    original, reply = snapshot.peers
    if state == TcpState.SYN_SENT:
        return Step(
            1, 0x12, numbers[1], original.td_end, _window(rng), 0, _options(rng, 0x12, 0, 0.1)
        )
    if state == TcpState.SYN_RECV:
        return Step(0, 0x10, original.td_end, reply.td_end, _window(rng))
    if state in (TcpState.SYN_SENT2, TcpState.TIME_WAIT, TcpState.CLOSE):
        return None
    direction = rng.randrange(2)
    sender, receiver = snapshot.peers[direction], snapshot.peers[1 - direction]
    flags = 0x11 if rng.random() < 0.1 else 0x18
    room = (sender.td_maxend - sender.td_end) & _MASK
    payload_len = min(room, rng.choice((0, 1, 100, 1400, 9000))) if room < 1 << 31 else 0
    options = _options(rng, flags, receiver.td_end, 0.1) if rng.random() < 0.3 else b""
    return Step(
        direction, flags, sender.td_end, receiver.td_end, _window(rng), payload_len, options
    )


def _flags(rng: random.Random, table: tuple[tuple[int, int], ...]) -> int:
    flags = rng.choices([f for f, _ in table], [w for _, w in table])[0]
    if flags < 0:
        flags = rng.getrandbits(8)
    if rng.random() < 0.1:
        flags ^= rng.choice((0x08, 0x20, 0x40, 0x80))
    return flags


def _near(rng: random.Random, number: int) -> int:
    draw = rng.random()
    if draw < 0.75:
        return (number + rng.choice((-2, -1, -1, 0, 0, 0, 1, 1, 2))) & _MASK
    return (number + rng.randrange(-3000, 3000)) & _MASK


def _seq(
    rng: random.Random,
    snapshot: FlowSnapshot,
    sender: Peer,
    receiver: Peer,
    payload_len: int,
    begin: int,
) -> int:
    draw = rng.random()
    if draw < 0.02:
        return 0
    if draw < 0.05:
        return rng.getrandbits(32)
    anchors = (
        sender.td_end,
        sender.td_end,
        sender.td_end - 1,
        sender.td_maxend,
        sender.td_maxend + 1,
        sender.td_maxend + receiver.td_maxwin - payload_len,
        sender.td_maxend + receiver.td_maxwin,
        sender.td_end - receiver.td_maxwin - payload_len,
        receiver.td_maxack,
        receiver.td_maxack,
        snapshot.last_seq,
        snapshot.last_end,
        snapshot.last_ack,
        begin,
    )
    return _near(rng, rng.choice(anchors))


def _ack(
    rng: random.Random, snapshot: FlowSnapshot, sender: Peer, receiver: Peer, begin: int
) -> int:
    draw = rng.random()
    if draw < 0.02:
        return 0
    if draw < 0.04:
        return rng.getrandbits(32)
    if draw < 0.5:
        return receiver.td_end
    anchors = (
        receiver.td_end,
        receiver.td_end + 1,
        receiver.td_end - max(66000, sender.td_maxwin),
        receiver.td_end - 66000,
        sender.td_maxack,
        receiver.td_maxend,
        snapshot.last_end,
        begin + 1,
    )
    return _near(rng, rng.choice(anchors))


def _window(rng: random.Random) -> int:
    draw = rng.random()
    if draw < 0.08:
        return 0
    if draw < 0.2:
        return rng.choice((1, 2, 100, 0x7FFF, 0x8000))
    return 65535 if draw < 0.3 else rng.getrandbits(16)


def _payload(rng: random.Random, chaos: float) -> int:
    draw = rng.random()
    if draw < 0.4:
        return 0
    if draw < 0.6:
        return 1
    if draw < 0.97:
        return rng.randrange(1, 1461)
    return rng.randrange(1, 40000 if chaos > 0.3 else 9000)


def _options(rng: random.Random, flags: int, acknowledged: int, chaos: float) -> bytes:
    if rng.random() < 0.1 * chaos:
        return rng.randbytes(4 * rng.randrange(0, 11))
    octets = b""
    if flags & _SYN:
        if rng.random() < 0.8:
            octets += b"\x02\x04" + struct.pack("!H", 1460)
        if rng.random() < 0.7:
            length = 3 if rng.random() > 0.05 * chaos else rng.randrange(0, 7)
            octets += bytes((3, length, rng.randrange(0, 17 if rng.random() < 0.9 else 256)))
        if rng.random() < 0.6:
            octets += b"\x04\x02"
        if rng.random() < 0.1:
            octets = b"\x01" * rng.randrange(0, 3) + octets
        if rng.random() < 0.03:
            octets += b"\x00\x03\x03\x05"
    draw = rng.random()
    if draw < 0.15:
        octets += b"\x01\x01\x08\x0a" + rng.randbytes(8)
    elif draw < 0.17:
        # The signature option of RFC 2385.
        octets += b"\x13\x12" + rng.randbytes(16)
    if rng.random() < (0.25 if flags & _ACK else 0.05):
        count = rng.randrange(1, 4)
        blocks = b"".join(
            struct.pack(
                "!II", *(_near(rng, acknowledged + rng.randrange(-4000, 400)) for _ in "ab")
            )
            for _ in range(count)
        )
        length = 2 + len(blocks) if rng.random() > 0.1 * chaos else rng.randrange(2, 30)
        octets += bytes((1, 1, 5, length)) + blocks
    octets = octets[:40]
    return octets + b"\x01" * (-len(octets) % 4)
