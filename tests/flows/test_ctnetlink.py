# SPDX-License-Identifier: MIT
"""ctnetlink whose responses are lost, malformed or errors, or that is missing."""

import errno
import sys
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.flow import Association, Evidence, FlowTuple, LookupFailed, SeqShift
from nfq_guard.flows.ctnetlink import CtnetlinkFlows, request, snapshot_of
from nfq_guard.lab.netns import Namespace
from nfq_guard.netlink.messages import (
    FAMILY_HEADER,
    attribute,
    message,
    nested,
)
from nfq_guard.seqno import Seq
from tests.support.ctnetlink import ENTRY, WANTED, FakeConnection, entry, error, tuple_part
from tests.support.lookups import answered


def _absent(sequence: int) -> bytes:
    return error(sequence, errno.ENOENT)


@pytest.fixture
def scripted() -> Callable[..., CtnetlinkFlows]:
    """A lookup whose connection plays a script; its first response is for the constructor."""

    def make(
        *turns: list[Callable[[int], bytes] | OSError],
        first: int = errno.ENOENT,
        zones: Sequence[int] = (0,),
    ) -> CtnetlinkFlows:
        fake = FakeConnection([lambda sequence: error(sequence, first)], *turns)
        return CtnetlinkFlows(zones, connection=fake)

    return make


Scripted = Callable[..., CtnetlinkFlows]


def test_entry_and_absence(scripted: Scripted) -> None:
    flows = scripted([entry], [_absent])
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
        body = FAMILY_HEADER.pack(2, 0, 0) + tuple_part(1, WANTED) + tuple_part(2, back) + info
        found = snapshot_of(body, WANTED)
        assert (found is not None) is read
        if found is not None:
            assert found.association == Association(4, 7, 9)


def test_the_shifts_of_a_flow() -> None:
    """Those of both directions come with the entry; cut short, the entry cannot be read."""
    values = attribute(1, b"\0\0\0\4"), attribute(2, b"\xff\xff\xff\xfe"), attribute(3, b"\0\0\0\7")
    for parts, read in ((values, True), (values[:2], False)):
        shifts = nested(15, *parts) + nested(16, *values)
        back = FlowTuple(6, WANTED.dst, WANTED.src, 80, 1000)
        body = FAMILY_HEADER.pack(2, 0, 0) + tuple_part(1, WANTED) + tuple_part(2, back) + shifts
        found = snapshot_of(body, WANTED)
        assert (found is not None) is read
        if found is not None:
            assert found.shifts == (SeqShift(Seq(4), 2**32 - 2, 7),) * 2


def test_lost_answer_is_requested_again(scripted: Scripted) -> None:
    flows = scripted([OSError(errno.ENOBUFS, "")], [entry])
    assert answered(flows.lookup([WANTED])) != [None]


def test_answer_lost_twice_is_a_failed_lookup(scripted: Scripted) -> None:
    """It is not "no entry", which would be a wrong finding."""
    flows = scripted([], [])
    assert flows.lookup([WANTED]) == [LookupFailed(errno.ENOBUFS)]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP])
def test_any_error_but_absence_is_a_failed_lookup(scripted: Scripted, code: int) -> None:
    flows = scripted([lambda sequence: error(sequence, code)])
    assert flows.lookup([WANTED]) == [LookupFailed(code)]


def test_an_entry_that_cannot_be_read_is_a_failed_lookup(scripted: Scripted) -> None:
    flows = scripted([lambda sequence: message(ENTRY, 0, sequence, 2, 0, tuple_part(1, WANTED))])
    assert flows.lookup([WANTED]) == [LookupFailed(errno.EBADMSG)]


def test_a_failure_in_one_zone_stays_unless_another_has_the_entry(scripted: Scripted) -> None:
    def refused(sequence: int) -> bytes:
        return error(sequence, errno.EINVAL)

    flows = scripted([refused], [_absent], [refused], [entry], zones=(0, 7))
    assert flows.lookup([WANTED]) == [LookupFailed(errno.EINVAL)]
    assert answered(flows.lookup([WANTED])) != [None]


def test_stale_and_foreign_answers_are_skipped(scripted: Scripted) -> None:
    flows = scripted(
        [
            lambda sequence: entry(sequence - 1),
            lambda sequence: message(0x999, 0, sequence, 2, 0, b""),
            lambda _: b"\x00" * 7,
            entry,
        ]
    )
    assert answered(flows.lookup([WANTED])) != [None]


def test_a_connection_that_fails_fails_the_lookups(scripted: Scripted) -> None:
    flows = scripted([OSError(errno.EBADF, "gone")], [entry])
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
    snapshot_of(entry(1)[16 : 16 + len(octets)] + octets, WANTED)


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


@pytest.mark.parametrize("proto", [1, 6, 17, 58])
def test_a_request_keeps_its_kind_whatever_the_protocol(proto: int) -> None:
    octets = request(0x101, 0, 1, FlowTuple(proto, WANTED.src, WANTED.dst, 7, 0x0800), 0, b"")
    assert octets[4:6] == (0x101).to_bytes(2, sys.byteorder)
