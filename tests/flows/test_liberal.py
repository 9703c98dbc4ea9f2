# SPDX-License-Identifier: MIT
"""The liberal flag of single flows, with lost, malformed and error responses, and live."""

import errno

import pytest

from nfq_guard.flow import Direction, TcpState
from nfq_guard.flows.liberal import LiberalFlag
from nfq_guard.netlink.messages import attribute, message, nested
from tests.support.ctnetlink import ENTRY, WANTED, Answer, FakeConnection, entry, error

REPLY = frozenset({Direction.REPLY})


def _liberal_entry(sequence: int) -> bytes:
    tcp = nested(1, attribute(1, b"\3"), attribute(4, b"\x3b\0"), attribute(5, b"\x22\0"))
    return entry(sequence, nested(4, tcp) + attribute(12, b"\0\0\0\x07"))


def _malformed_entry(sequence: int) -> bytes:
    return message(ENTRY, 0, sequence, 2, 0, b"")


def test_an_entry_with_the_flag() -> None:
    flag = LiberalFlag(FakeConnection([_liberal_entry]))
    found = flag.read(WANTED, 0)
    assert found is not None
    assert found.liberal == {Direction.ORIGINAL}
    assert found.identity == b"\0\0\0\x07\3\2"
    assert (found.snapshot.original, found.snapshot.state) == (WANTED, TcpState.ESTABLISHED)


def test_an_entry_without_flags_or_without_tuples() -> None:
    flag = LiberalFlag(FakeConnection([entry], [_malformed_entry]))
    found = flag.read(WANTED, 0)
    assert found is not None
    assert (found.liberal, found.identity) == (frozenset(), bytes(2))
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
    return error(sequence, 0)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EBUSY])
def test_a_refusal_is_raised(code: int) -> None:
    flag = LiberalFlag(FakeConnection([lambda sequence: error(sequence, code)]))
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
