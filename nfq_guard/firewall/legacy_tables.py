# SPDX-License-Identifier: MIT
"""Reads the tables of legacy iptables from the kernel: jumps to our chain, counts, and digests.

iptables-legacy opens a raw socket, which requires CAP_NET_RAW. The kernel allows the tables to be
read through any IPv4 or IPv6 socket with CAP_NET_ADMIN alone, so inherited sockets suffice for a
daemon whose sandbox forbids it to open its own.
"""

import ctypes
import hashlib
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, final

from nfq_guard.firewall.spec import CHAIN

# From the kernel's user interface (linux/netfilter_ipv4/ip_tables.h, linux/netfilter/x_tables.h).
_MANGLE: Final = "mangle"
_GET_INFO: Final = 64
_GET_ENTRIES: Final = 65
_INFO: Final = struct.Struct("=32s13I")
_TARGET: Final = struct.Struct("=H29sB")
_VERDICT: Final = struct.Struct("=i")
_PACKETS: Final = struct.Struct("=Q")
_COUNTER_BYTES: Final = 16
# struct ipt_get_entries ends with the entries, which are aligned to 8 bytes.
_HEAD_BYTES: Final = 40
_HOOKS: Final = 5
# A table that grows between its two reads is read again.
_ATTEMPTS: Final = 3


class _Layout(NamedTuple):
    """The layout of struct ipt_entry or ip6t_entry.

    Attributes:
        level: Level of the socket option.
        offsets: Offset of the two numbers `target_offset` and `next_offset`.
        counter: Offset of the number of packets.
        names: The file that lists the tables of the family.
    """

    level: int
    offsets: int
    counter: int
    names: str


_LAYOUTS: Final = {
    socket.AF_INET: _Layout(socket.SOL_IP, 88, 96, "ip_tables_names"),
    socket.AF_INET6: _Layout(socket.IPPROTO_IPV6, 140, 152, "ip6_tables_names"),
}


@final
class LegacyTables:
    """The table mangle of legacy iptables, in the network namespace of each socket."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        """Read through `sockets`, at most one a family; the caller closes them."""
        self._sockets = tuple(sockets)

    def jumps(self) -> frozenset[tuple[int, int]] | None:
        """The families and hooks in which a jump leads to our chain; None if unknown.

        A chain without a rule that queues does not count.
        """
        found: set[tuple[int, int]] = set()
        for one in self._sockets:
            hooks = _jumps(one)
            if hooks is None:
                return None
            found |= {(int(one.family), hook) for hook in hooks}
        return frozenset(found)

    def queued(self) -> int | None:
        """Number of packets that the rules in our chain have queued; None if unknown."""
        found = 0
        for one in self._sockets:
            layout = _LAYOUTS[one.family]
            if _MANGLE not in _names(layout):
                continue
            table = _table(one)
            if table is None:
                return None
            found += sum(
                _PACKETS.unpack_from(table.entries, rule.offset + layout.counter)[0]
                for rule in _in_our_chain(table.entries, layout)
                if rule.target == b"NFQUEUE"
            )
        return found


def digests(through: socket.socket) -> dict[str, str]:
    """A digest of each table of the socket's family, which ignores counters.

    A table that cannot be read is omitted.
    """
    layout = _LAYOUTS[through.family]
    found: dict[str, str] = {}
    for name in _names(layout):
        table = _table(through, name)
        if table is not None:
            entries = bytearray(table.entries)
            for one in _entries(table.entries, layout):
                start = one.offset + layout.counter
                entries[start : start + _COUNTER_BYTES] = bytes(_COUNTER_BYTES)
            found[name] = hashlib.sha256(entries).hexdigest()
    return found


def _names(layout: _Layout) -> list[str]:
    """The existing tables; reading a missing one would make the kernel create it."""
    try:
        names = Path("/proc/thread-self/net", layout.names).read_text(encoding="ascii")
    except OSError:
        return []
    return names.split()


class _Table(NamedTuple):
    """The entries of a table, and the range of each built-in chain by hook."""

    entries: bytes
    begins: Sequence[int]
    ends: Sequence[int]


class _Entry(NamedTuple):
    """One rule: its offset, the offset of the next, and the name and the data of its target."""

    offset: int
    end: int
    target: bytes
    data: bytes

    @property
    def heads(self) -> str | None:
        """The chain whose head this entry is; None for a rule."""
        if self.target != b"ERROR":
            return None
        return self.data.partition(b"\0")[0].decode("ascii", "replace")


def _jumps(through: socket.socket) -> set[int] | None:
    table = _table(through)
    return None if table is None else _hooks_to_us(table, _LAYOUTS[through.family])


def _table(through: socket.socket, name: str = _MANGLE) -> _Table | None:
    layout = _LAYOUTS[through.family]
    for _ in range(_ATTEMPTS):
        info = _read(through, layout.level, _GET_INFO, name.encode().ljust(_INFO.size, b"\0"))
        if info is None:
            return None
        numbers = _INFO.unpack(info)[1:]
        size = numbers[-1]
        head = struct.pack("=32sI", name.encode(), size).ljust(_HEAD_BYTES + size, b"\0")
        table = _read(through, layout.level, _GET_ENTRIES, head)
        if table is not None:
            begins, ends = numbers[1 : 1 + _HOOKS], numbers[1 + _HOOKS : 1 + 2 * _HOOKS]
            return _Table(table[_HEAD_BYTES:], begins, ends)
    return None


def _hooks_to_us(table: _Table, layout: _Layout) -> set[int]:
    entries = list(_entries(table.entries, layout))
    if not any(one.target == b"NFQUEUE" for one in _in_our_chain(table.entries, layout)):
        return set()
    start = next(one.end for one in entries if one.heads == CHAIN)
    jumps = [
        one.offset
        for one in entries
        if one.target == b""
        and len(one.data) >= _VERDICT.size
        and _VERDICT.unpack_from(one.data)[0] == start
    ]
    return {
        hook
        for hook, (first, last) in enumerate(zip(table.begins, table.ends, strict=True))
        if any(first <= offset <= last for offset in jumps)
    }


def _in_our_chain(table: bytes, layout: _Layout) -> Iterator[_Entry]:
    inside = False
    for one in _entries(table, layout):
        chain = one.heads
        if chain is not None:
            inside = chain == CHAIN
        elif inside:
            yield one


def _entries(table: bytes, layout: _Layout) -> Iterator[_Entry]:
    offset = 0
    while offset + layout.offsets + 4 <= len(table):
        target, following = struct.unpack_from("=HH", table, offset + layout.offsets)
        begin, end = offset + target, offset + following
        if following == 0 or end > len(table) or begin + _TARGET.size > end:
            return
        name = _TARGET.unpack_from(table, begin)[1].partition(b"\0")[0]
        yield _Entry(offset, end, name, table[begin + _TARGET.size : end])
        offset = end


def _read(through: socket.socket, level: int, option: int, content: bytes) -> bytes | None:
    """Read a socket option whose value selects what to read; None if the kernel refuses.

    `socket.getsockopt` cannot pass a value.
    """
    buffer = ctypes.create_string_buffer(content, len(content))
    length = ctypes.c_uint(len(content))
    library = ctypes.PyDLL(None)
    refused = library.getsockopt(through.fileno(), level, option, buffer, ctypes.byref(length))
    return None if refused else buffer.raw
