# SPDX-License-Identifier: MIT
"""ctnetlink that loses answers, sends malformed ones, refuses, or is missing."""

import errno
import struct
import sys
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.flow import Association, Evidence, FlowTuple, LookupFailed
from nfq_guard.flows.ctnetlink import CtnetlinkFlows, snapshot_of
from nfq_guard.lab.netns import Namespace
from nfq_guard.netlink.messages import (
    FAMILY_HEADER,
    NLMSG_ERROR,
    attribute,
    message,
    messages,
    nested,
)
from tests.support.lookups import answered

WANTED = FlowTuple(6, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 1000, 80)
_ENTRY = 0x100


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


def _entry(sequence: int) -> bytes:
    back = FlowTuple(6, WANTED.dst, WANTED.src, 80, 1000)
    return message(_ENTRY, 0, sequence, 2, 0, _tuple(1, WANTED) + _tuple(2, back))


def _error(sequence: int, code: int) -> bytes:
    # An error has no family header: the number stands where that would be.
    whole = bytearray(message(NLMSG_ERROR, 0, sequence, 0, 0, b""))
    whole[16:20] = struct.pack("=i", -code)
    return bytes(whole)


class FakeConnection:
    """Answers each request by a script of datagrams and errors."""

    def __init__(self, *turns: list[Callable[[int], bytes] | OSError]) -> None:
        self._turns = iter(turns)
        self._ready: list[bytes | OSError] = []
        self.closed = False

    def send(self, octets: bytes) -> None:
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


def _absent(sequence: int) -> bytes:
    return _error(sequence, errno.ENOENT)


@pytest.fixture
def scripted() -> Callable[..., CtnetlinkFlows]:
    """A lookup whose connection plays a script; the first turn answers the constructor."""

    def make(
        *turns: list[Callable[[int], bytes] | OSError],
        first: int = errno.ENOENT,
        zones: Sequence[int] = (0,),
    ) -> CtnetlinkFlows:
        fake = FakeConnection([lambda sequence: _error(sequence, first)], *turns)
        return CtnetlinkFlows(zones, connection=fake)

    return make


Scripted = Callable[..., CtnetlinkFlows]


def test_entry_and_absence(scripted: Scripted) -> None:
    flows = scripted([_entry], [_absent])
    (found,) = answered(flows.lookup([WANTED]))
    assert found is not None
    assert (found.evidence, found.direction, found.original) == (Evidence.CTNETLINK, 0, WANTED)
    assert flows.lookup([WANTED]) == [None]


def test_the_association_of_a_flow() -> None:
    """Its state and tags come with the entry; cut short, the entry cannot be read."""
    values = attribute(1, b"\4"), attribute(2, b"\0\0\0\7"), attribute(3, b"\0\0\0\x09")
    for parts, read in ((values, True), (values[:2], False)):
        info = nested(4, nested(3, *parts))
        back = FlowTuple(6, WANTED.dst, WANTED.src, 80, 1000)
        body = FAMILY_HEADER.pack(2, 0, 0) + _tuple(1, WANTED) + _tuple(2, back) + info
        found = snapshot_of(body, WANTED)
        assert (found is not None) is read
        if found is not None:
            assert found.association == Association(4, 7, 9)


def test_lost_answer_is_requested_again(scripted: Scripted) -> None:
    flows = scripted([OSError(errno.ENOBUFS, "")], [_entry])
    assert answered(flows.lookup([WANTED])) != [None]


def test_answer_lost_twice_is_a_failed_lookup(scripted: Scripted) -> None:
    """Not "no entry": that would be a finding, and a wrong one."""
    flows = scripted([], [])
    assert flows.lookup([WANTED]) == [LookupFailed(errno.ENOBUFS)]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP])
def test_any_error_but_absence_is_a_failed_lookup(scripted: Scripted, code: int) -> None:
    flows = scripted([lambda sequence: _error(sequence, code)])
    assert flows.lookup([WANTED]) == [LookupFailed(code)]


def test_an_entry_that_cannot_be_read_is_a_failed_lookup(scripted: Scripted) -> None:
    flows = scripted([lambda sequence: message(_ENTRY, 0, sequence, 2, 0, _tuple(1, WANTED))])
    assert flows.lookup([WANTED]) == [LookupFailed(errno.EBADMSG)]


def test_a_failure_in_one_zone_stays_unless_another_has_the_entry(scripted: Scripted) -> None:
    def refused(sequence: int) -> bytes:
        return _error(sequence, errno.EINVAL)

    flows = scripted([refused], [_absent], [refused], [_entry], zones=(0, 7))
    assert flows.lookup([WANTED]) == [LookupFailed(errno.EINVAL)]
    assert answered(flows.lookup([WANTED])) != [None]


def test_stale_and_foreign_answers_are_skipped(scripted: Scripted) -> None:
    flows = scripted(
        [
            lambda sequence: _entry(sequence - 1),
            lambda sequence: message(0x999, 0, sequence, 2, 0, b""),
            lambda _: b"\x00" * 7,
            _entry,
        ]
    )
    assert answered(flows.lookup([WANTED])) != [None]


def test_a_connection_that_fails_fails_the_lookups(scripted: Scripted) -> None:
    flows = scripted([OSError(errno.EBADF, "gone")], [_entry])
    assert flows.lookup([WANTED]) == [LookupFailed(errno.EBADF)]
    assert answered(flows.lookup([WANTED])) != [None]


def test_missing_privilege_and_missing_kernel_part(scripted: Scripted) -> None:
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        scripted(first=errno.EPERM)
    with pytest.raises(UnavailableError, match="CONFIG_NF_CT_NETLINK"):
        scripted(first=errno.EINVAL)


@given(st.binary(max_size=300))
def test_any_entry_is_read_or_rejected(octets: bytes) -> None:
    """Cut, repeated or inconsistent attributes give None, never an exception."""
    snapshot_of(octets, WANTED)
    snapshot_of(_entry(1)[16 : 16 + len(octets)] + octets, WANTED)


@pytest.mark.kernel
def test_tuples_that_conntrack_cannot_have(namespace: Callable[[str], Namespace]) -> None:
    """Unknown protocols, and ICMP types that are neither request nor reply, have no entry."""
    with namespace("odd").entered():
        flows = CtnetlinkFlows((0, 5))
    odd = [
        FlowTuple(253, bytes(4), bytes(4), 0, 0),
        FlowTuple(1, bytes(4), bytes(4), 1, 3 << 8),
        FlowTuple(58, bytes(16), bytes(16), 1, 250 << 8),
        FlowTuple(132, bytes(16), bytes(16), 1, 2),
    ]
    assert flows.lookup(odd * 20) == [None] * 80
    assert flows.lookup([]) == []
    flows.close()
