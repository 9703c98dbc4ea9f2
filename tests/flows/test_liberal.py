# SPDX-License-Identifier: MIT
"""The flag of single flows: answers that are lost, malformed or refusals, and the live kernel."""

import errno
import struct
import sys
from collections.abc import Callable

import pytest

from nfq_guard.flow import Direction, FlowTuple, TcpState
from nfq_guard.flows.liberal import LiberalFlag
from nfq_guard.netlink.messages import NLMSG_ERROR, attribute, message, messages, nested

WANTED = FlowTuple(6, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 1000, 80)
_ENTRY = 0x100
REPLY = frozenset({Direction.REPLY})


def _tuple(kind: int, wanted: FlowTuple) -> bytes:
    return nested(
        kind,
        nested(1, attribute(1, wanted.src), attribute(2, wanted.dst)),
        nested(
            2,
            attribute(1, bytes((wanted.proto,))),
            attribute(2, wanted.sport.to_bytes(2, "big")),
            attribute(3, wanted.dport.to_bytes(2, "big")),
        ),
    )


def _entry(sequence: int, more: bytes = b"") -> bytes:
    back = FlowTuple(6, WANTED.dst, WANTED.src, 80, 1000)
    return message(_ENTRY, 0, sequence, 2, 0, _tuple(1, WANTED) + _tuple(2, back) + more)


def _liberal_entry(sequence: int) -> bytes:
    tcp = nested(1, attribute(1, b"\3"), attribute(4, b"\x0a\0"), attribute(5, b"\x02\0"))
    return _entry(sequence, nested(4, tcp) + attribute(12, b"\0\0\0\x07"))


def _malformed_entry(sequence: int) -> bytes:
    return message(_ENTRY, 0, sequence, 2, 0, b"")


def _error(sequence: int, code: int) -> bytes:
    # An error has no family header: the number stands where that would be.
    whole = bytearray(message(NLMSG_ERROR, 0, sequence, 0, 0, b""))
    whole[16:20] = struct.pack("=i", -code)
    return bytes(whole)


Answer = Callable[[int], bytes] | OSError


class FakeConnection:
    """Answers each request by a script of datagrams and errors."""

    def __init__(self, *turns: list[Answer]) -> None:
        self._turns = iter(turns)
        self._ready: list[bytes | OSError] = []
        self.sent = b""
        self.closed = False

    def send(self, octets: bytes) -> None:
        self.sent = octets
        sequence = int.from_bytes(octets[8:12], sys.byteorder)
        turn = next(self._turns)
        self._ready = [one if isinstance(one, OSError) else one(sequence) for one in turn]

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        if not self._ready:
            return None
        answer = self._ready.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return list(messages(answer))

    def close(self) -> None:
        self.closed = True


def test_an_entry_with_the_flag() -> None:
    flag = LiberalFlag(FakeConnection([_liberal_entry]))
    found = flag.read(WANTED, 0)
    assert found is not None
    assert found.liberal == {Direction.ORIGINAL}
    assert found.identity == b"\0\0\0\x07"
    assert (found.snapshot.original, found.snapshot.state) == (WANTED, TcpState.ESTABLISHED)


def test_an_entry_without_flags_or_without_tuples() -> None:
    flag = LiberalFlag(FakeConnection([_entry], [_malformed_entry]))
    found = flag.read(WANTED, 0)
    assert found is not None
    assert (found.liberal, found.identity) == (frozenset(), b"")
    assert flag.read(WANTED, 0) is None


def test_the_request_names_zone_flags_and_mask() -> None:
    connection = FakeConnection([_success], [_success])
    flag = LiberalFlag(connection)
    flag.write(WANTED, 7, REPLY, on=True)
    assert nested(4, nested(1, attribute(5, b"\x08\x08"))) in connection.sent
    assert attribute(18, b"\0\x07") in connection.sent
    flag.write(WANTED, 0, frozenset(Direction), on=False)
    both = attribute(4, b"\0\x08") + attribute(5, b"\0\x08")
    assert nested(4, nested(1, both)) in connection.sent
    flag.close()
    assert connection.closed


def _success(sequence: int) -> bytes:
    return _error(sequence, 0)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EBUSY])
def test_a_refusal_is_raised(code: int) -> None:
    flag = LiberalFlag(FakeConnection([lambda sequence: _error(sequence, code)]))
    with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
        flag.write(WANTED, 0, REPLY, on=True)
    assert caught.value.errno == code


def test_a_lost_answer_is_an_error() -> None:
    lost: list[Answer] = [OSError(errno.ENOBUFS, "lost")]
    flag = LiberalFlag(FakeConnection(lost, [lambda sequence: _success(sequence - 1)]))
    for _ in range(2):
        with pytest.raises(OSError, match="ENOBUFS"):
            flag.read(WANTED, 0)


def test_a_broken_connection_is_raised() -> None:
    flag = LiberalFlag(FakeConnection([OSError(errno.ENETDOWN, "down")]))
    with pytest.raises(OSError, match="down"):
        flag.read(WANTED, 0)
