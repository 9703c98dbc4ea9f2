# SPDX-License-Identifier: MIT
"""Reads the tables of legacy iptables from the kernel: jumps to our chains, counts, and digests.

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

from nfq_guard.firewall.spec import CHAIN, FALLBACK_CHAIN

# From the kernel's user interface (linux/netfilter_ipv4/ip_tables.h, linux/netfilter/x_tables.h).
_MANGLE: Final = "mangle"
_FILTER: Final = "filter"
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
_DROP: Final = -1
# A table that grows between its two reads is read again.
_ATTEMPTS: Final = 3
# The table filter may have thousands of rules, which take tens of milliseconds to read and parse.
# While its size and chains are the same, it is read once in so many looks.
_LOOKS: Final = 30

Jump = tuple[str, int, int]
"""Where a jump leads to a chain of ours: the table, the family of addresses, and the hook."""


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


class _Looked(NamedTuple):
    """What the last look found in the table filter.

    Attributes:
        info: The kernel's description of the table, without its rules.
        hooks: The hooks in which a jump leads to our chain.
        left: Looks for which this holds if the description is the same.
    """

    info: bytes
    hooks: set[int]
    left: int


@final
class LegacyTables:
    """Our chains in legacy iptables, in the network namespace of each socket."""

    def __init__(self, sockets: Sequence[socket.socket], *, fallback: bool = False) -> None:
        """Read through `sockets`, at most one a family; the caller closes them.

        `fallback` says whether the rules may have the chain of the fail mode kernel-drop.
        """
        self._sockets = tuple(sockets)
        self._fallback = fallback
        self._looked: dict[int, _Looked] = {}

    def jumps(self) -> frozenset[Jump] | None:
        """Where jumps lead to our chains; None if unknown.

        A chain without the rule that queues, or that drops in kernel-drop, does not count.
        """
        found: set[Jump] = set()
        for one in self._sockets:
            family = int(one.family)
            hooks = _queueing(one)
            if hooks is None:
                return None
            found |= {(_MANGLE, family, hook) for hook in hooks}
            if self._fallback:
                dropping = self._look(one)
                if dropping is None:
                    return None
                found |= {(_FILTER, family, hook) for hook in dropping}
        return frozenset(found)

    def _look(self, through: socket.socket) -> set[int] | None:
        """The hooks with a jump to the chain of kernel-drop; None if unknown."""
        layout = _LAYOUTS[through.family]
        if _FILTER not in _names(layout):
            return set()
        info = _info(through, _FILTER)
        last = self._looked.get(int(through.family))
        if info is not None and last is not None and last.info == info and last.left:
            self._looked[int(through.family)] = last._replace(left=last.left - 1)
            return last.hooks
        table = _table(through, _FILTER)
        if info is None or table is None:
            return None
        hooks = _hooks_to(FALLBACK_CHAIN, table, layout)
        self._looked[int(through.family)] = _Looked(info, hooks, _LOOKS)
        return hooks

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
                for rule in _in_chain(CHAIN, table.entries, layout)
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


def _queueing(through: socket.socket) -> set[int] | None:
    """The hooks with a jump to the chain that queues; None if unknown."""
    layout = _LAYOUTS[through.family]
    listed = _listed(layout)
    if listed is not None and _MANGLE not in listed:
        return set()
    table = _table(through)
    return None if table is None else _hooks_to(CHAIN, table, layout)


def _names(layout: _Layout) -> list[str]:
    """The existing tables; reading a missing one would make the kernel create it."""
    return _listed(layout) or []


def _listed(layout: _Layout) -> list[str] | None:
    """The existing tables; None if they are unknown."""
    try:
        names = Path("/proc/thread-self/net", layout.names).read_text(encoding="ascii")
    except FileNotFoundError:  # the module is not loaded
        return []
    except OSError:
        return None
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

    @property
    def verdict(self) -> int | None:
        """The offset to which it jumps, or below 0 its verdict; None for another target."""
        if self.target != b"" or len(self.data) < _VERDICT.size:
            return None
        return int(_VERDICT.unpack_from(self.data)[0])


def _info(through: socket.socket, name: str) -> bytes | None:
    """The kernel's description of a table (struct ipt_getinfo); None if the kernel refuses."""
    wanted = name.encode().ljust(_INFO.size, b"\0")
    return _read(through, _LAYOUTS[through.family].level, _GET_INFO, wanted)


def _table(through: socket.socket, name: str = _MANGLE) -> _Table | None:
    layout = _LAYOUTS[through.family]
    for _ in range(_ATTEMPTS):
        info = _info(through, name)
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


def _hooks_to(chain: str, table: _Table, layout: _Layout) -> set[int]:
    acts = _queues if chain == CHAIN else _drops
    if not any(acts(one) for one in _in_chain(chain, table.entries, layout)):
        return set()
    entries = list(_entries(table.entries, layout))
    start = next(one.end for one in entries if one.heads == chain)
    jumps = [one.offset for one in entries if one.verdict == start]
    return {
        hook
        for hook, (first, last) in enumerate(zip(table.begins, table.ends, strict=True))
        if any(first <= offset <= last for offset in jumps)
    }


def _queues(rule: _Entry) -> bool:
    return rule.target == b"NFQUEUE"


def _drops(rule: _Entry) -> bool:
    return rule.verdict == _DROP


def _in_chain(chain: str, table: bytes, layout: _Layout) -> Iterator[_Entry]:
    inside = False
    for one in _entries(table, layout):
        head = one.heads
        if head is not None:
            inside = head == chain
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
