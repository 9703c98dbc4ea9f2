# SPDX-License-Identifier: MIT
"""Flows through ctnetlink: state, status and both tuples, but no window (kernel.md 3)."""

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, Protocol, final

from nfq_guard import capabilities
from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.flow import (
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    Association,
    Direction,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    LookupFailed,
    LookupResult,
    SeqShift,
    answering,
)
from nfq_guard.netlink.connection import Connection, responses
from nfq_guard.netlink.messages import (
    FAMILY_HEADER,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_in,
    message,
    nested,
)
from nfq_guard.seqno import Seq

# NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET, and with IPCTNL_MSG_CT_NEW.
GET: Final = 1 << 8 | 1
ENTRY: Final = 1 << 8

# CTA_*, and below them CTA_TUPLE_*, CTA_IP_*, CTA_PROTO_*, CTA_PROTOINFO_*, CTA_SEQADJ_*.
_TUPLE_ORIG: Final = 1
_TUPLE_REPLY: Final = 2
_STATUS: Final = 3
PROTOINFO: Final = 4
_TIMEOUT: Final = 7
_MARK: Final = 8
_SEQ_ADJ: Final = (15, 16)
_ZONE: Final = 18
_TUPLE_IP: Final = 1
_TUPLE_PROTO: Final = 2
_PROTO_NUM: Final = 1
_PROTO_SPORT: Final = 2
_PROTO_DPORT: Final = 3
# Source and destination by the length of an address; identifier, type and code by protocol.
_ADDRESSES: Final = {4: (1, 2), 16: (3, 4)}
_ICMP_PARTS: Final = {PROTO_ICMP: (4, 5, 6), PROTO_ICMPV6: (7, 8, 9)}
PROTOINFO_TCP: Final = 1
_TCP_STATE: Final = 1
TCP_FLAGS: Final = (4, 5)
_PROTOINFO_SCTP: Final = 3
_SCTP_STATE: Final = 1
_SCTP_TAG_ORIGINAL: Final = 2
_SCTP_TAG_REPLY: Final = 3
_CORRECTION_POS: Final = 1
_OFFSET_BEFORE: Final = 2
_OFFSET_AFTER: Final = 3

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
# Requests sent before responses are read; this number of responses fits the smallest usual socket
# buffer.
_BATCH: Final = 32


class Netlink(Protocol):
    """The part of `netlink.connection.Connection` that a lookup uses."""

    def send(self, octets: bytes) -> None:
        """Send messages."""

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        """The messages of the next datagram; None if none waits."""

    def close(self) -> None:
        """Close it."""


@final
class CtnetlinkFlows:
    """`engine.FlowLookup` on the flow table of the network namespace in which it was created."""

    evidence: Final = Evidence.CTNETLINK

    def __init__(self, zones: Sequence[int] = (0,), *, connection: Netlink | None = None) -> None:
        """Connect, and test a lookup.

        Args:
            zones: Conntrack zones to try for each tuple, in order; at least one.
            connection: Closed with this; a new one unless given.

        Raises:
            PrivilegeError: CAP_NET_ADMIN is missing.
            UnavailableError: The kernel has no ctnetlink.
        """
        self._zones = tuple(zones)
        self._sequence = 0
        self._connection = connection or Connection()
        try:
            self._try()
        except BaseException:
            self._connection.close()
            raise

    def _try(self) -> None:
        """Look up a flow that cannot exist; the kernel must respond with ENOENT."""
        impossible = FlowTuple(PROTO_TCP, bytes(4), bytes(4), 0, 0)
        code, _ = self._ask([impossible], 0).get(0, (0, b""))
        if code == errno.EPERM:
            lacking = capabilities.no_net_admin() or "CAP_NET_ADMIN is missing"
            raise PrivilegeError(f"ctnetlink refuses lookups: {lacking}")
        if code != errno.ENOENT:
            reason = os.strerror(code) if code else "no answer"
            raise UnavailableError(
                f"kernel option CONFIG_NF_CT_NETLINK is missing: a lookup gave {reason!r}"
            )

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        """One result a tuple, in order; None also if conntrack cannot have an entry.

        A lookup that failed in one zone has failed unless another zone has the entry.
        """
        results: list[LookupResult] = [None] * len(tuples)
        missing = [index for index, wanted in enumerate(tuples) if _is_trackable(wanted)]
        for zone in self._zones:
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                answers = self._results([tuples[index] for index in part], zone)
                for index, result in zip(part, answers, strict=True):
                    if result is not None:
                        results[index] = result
            missing = [index for index in missing if not isinstance(results[index], FlowSnapshot)]
            if not missing:
                break
        return results

    def _results(self, tuples: Sequence[FlowTuple], zone: int) -> list[LookupResult]:
        """One result a tuple; a lost response is requested once more."""
        try:
            answers = self._ask(tuples, zone)
            for index, wanted in enumerate(tuples):
                if index not in answers:
                    answers[index] = self._ask([wanted], zone).get(0, (errno.ENOBUFS, b""))
        except OSError as error:
            return [LookupFailed(error.errno or errno.EIO)] * len(tuples)
        return [_result(*answers[index], wanted) for index, wanted in enumerate(tuples)]

    def _ask(self, tuples: Sequence[FlowTuple], zone: int) -> dict[int, tuple[int, bytes]]:
        """By position in `tuples`: an errno without a body, or 0 and the body of an entry.

        The kernel responds before `send` returns, so there is no need to wait: a missing response
        was lost for lack of memory.

        Raises:
            OSError: The connection failed.
        """
        first = self._sequence + 1
        self._sequence = (self._sequence + len(tuples)) & 0x3FFFFFFF
        requests = [_request(wanted, zone, first + index) for index, wanted in enumerate(tuples)]
        self._connection.send(b"".join(requests))
        answers: dict[int, tuple[int, bytes]] = {}
        for kind, sequence, body in responses(self._connection):
            index = sequence - first
            if not 0 <= index < len(tuples):
                continue
            if kind == NLMSG_ERROR:
                answers[index] = (error_in(body), b"")
            elif kind == ENTRY:
                answers[index] = (0, body)
        return answers

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _is_trackable(wanted: FlowTuple) -> bool:
    """Whether conntrack can have an entry for a tuple.

    It has none for an ICMP message that is neither a request nor a reply; its lookup gives EINVAL,
    which would look like a failure.
    """
    return wanted.proto not in _ICMP_PARTS or answering(wanted).dport != wanted.dport


def _result(code: int, body: bytes, wanted: FlowTuple) -> LookupResult:
    """The result of a response; a response that cannot be read is a failed lookup."""
    if code == errno.ENOENT:
        return None
    if code:
        return LookupFailed(code)
    return snapshot_of(body, wanted) or LookupFailed(errno.EBADMSG)


def _request(wanted: FlowTuple, zone: int, sequence: int) -> bytes:
    return request(GET, 0, sequence, wanted, zone, b"")


def request(
    kind: int, flags: int, sequence: int, wanted: FlowTuple, zone: int, more: bytes
) -> bytes:
    """A request about one entry, identified by the tuple of either direction.

    Args:
        kind: As `netlink.messages.message` takes it.
        flags: As `netlink.messages.message` takes it.
        sequence: As `netlink.messages.message` takes it.
        wanted: The tuple.
        zone: Its conntrack zone.
        more: Further attributes.
    """
    src, dst = _ADDRESSES[len(wanted.src)]
    proto = attribute(_PROTO_NUM, bytes((wanted.proto,)))
    icmp = _ICMP_PARTS.get(wanted.proto)
    if icmp is None:
        ports = attribute(_PROTO_SPORT, _U16.pack(wanted.sport)) + attribute(
            _PROTO_DPORT, _U16.pack(wanted.dport)
        )
    else:
        icmp_id, icmp_type, icmp_code = icmp
        ports = b"".join(
            (
                attribute(icmp_id, _U16.pack(wanted.sport)),
                attribute(icmp_type, bytes((wanted.dport >> 8,))),
                attribute(icmp_code, bytes((wanted.dport & 0xFF,))),
            )
        )
    body = nested(
        _TUPLE_ORIG,
        nested(_TUPLE_IP, attribute(src, wanted.src), attribute(dst, wanted.dst)),
        nested(_TUPLE_PROTO, proto, ports),
    )
    if zone:
        body += attribute(_ZONE, _U16.pack(zone))
    family = socket.AF_INET if len(wanted.src) == 4 else socket.AF_INET6
    return message(kind, flags, sequence, family, 0, body + more)


def snapshot_of(body: bytes, wanted: FlowTuple) -> FlowSnapshot | None:
    """Parse one entry, found for `wanted`; None if it lacks a tuple or cannot be parsed."""
    entry = attributes(body[FAMILY_HEADER.size :])
    try:
        original = _tuple_of(entry[_TUPLE_ORIG])
        reply = _tuple_of(entry[_TUPLE_REPLY])
        state = 0
        flags: tuple[int, int] | None = None
        association: Association | None = None
        if PROTOINFO in entry:
            info = attributes(entry[PROTOINFO])
            tcp = attributes(info.get(PROTOINFO_TCP, b""))
            state = tcp.get(_TCP_STATE, b"\0")[0]
            ours, theirs = (tcp.get(kind, b"\0")[0] for kind in TCP_FLAGS)
            flags = ours, theirs
            if _PROTOINFO_SCTP in info:
                association = _association_of(info[_PROTOINFO_SCTP])
        zone = _U16.unpack(entry.get(_ZONE, bytes(2)))[0]
        status, mark, timeout_s = (
            _U32.unpack(entry.get(kind, bytes(4)))[0] for kind in (_STATUS, _MARK, _TIMEOUT)
        )
        shifts: tuple[SeqShift, SeqShift] | None = None
        if all(kind in entry for kind in _SEQ_ADJ):
            ours, theirs = _SEQ_ADJ
            shifts = _shift_of(entry[ours]), _shift_of(entry[theirs])
    except (KeyError, IndexError, struct.error):
        return None
    direction = Direction.ORIGINAL if wanted == original else Direction.REPLY
    return FlowSnapshot(
        Evidence.CTNETLINK, int(direction), original, reply, status, mark, zone, timeout_s, state,
        None, peer_flags=flags, association=association, shifts=shifts,
    )  # fmt: skip


def _association_of(octets: bytes) -> Association:
    parts = attributes(octets)
    return Association(
        parts[_SCTP_STATE][0],
        int(_U32.unpack(parts[_SCTP_TAG_ORIGINAL])[0]),
        int(_U32.unpack(parts[_SCTP_TAG_REPLY])[0]),
    )


def _shift_of(octets: bytes) -> SeqShift:
    parts = attributes(octets)
    position, before, after = (
        int(_U32.unpack(parts[kind])[0])
        for kind in (_CORRECTION_POS, _OFFSET_BEFORE, _OFFSET_AFTER)
    )
    return SeqShift(Seq(position), before, after)


def _tuple_of(octets: bytes) -> FlowTuple:
    parts = attributes(octets)
    addresses = attributes(parts[_TUPLE_IP])
    ports = attributes(parts[_TUPLE_PROTO])
    proto = ports[_PROTO_NUM][0]
    src, dst = _ADDRESSES[4] if _ADDRESSES[4][0] in addresses else _ADDRESSES[16]
    icmp = _ICMP_PARTS.get(proto)
    if icmp is None:
        sport = _U16.unpack(ports.get(_PROTO_SPORT, bytes(2)))[0]
        dport = _U16.unpack(ports.get(_PROTO_DPORT, bytes(2)))[0]
    else:
        identifier, kind, code = icmp
        sport = _U16.unpack(ports[identifier])[0]
        dport = ports[kind][0] << 8 | ports[code][0]
    return FlowTuple(proto, addresses[src], addresses[dst], sport, dport)
