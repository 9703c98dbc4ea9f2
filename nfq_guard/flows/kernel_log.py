# SPDX-License-Identifier: MIT
"""Reads conntrack's log of INVALID packets (kernel.md 1.12), and pairs texts with queued packets.

The kernel sends the text about a packet before it queues the packet, so a text that is absent when
the packet is read will not arrive, and no wait is needed. A text and its packet are paired by the
bytes that no rule between conntrack's hook and ours changes. `log_settings` turns the log on.
"""

import errno
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, Self, final

from nfq_guard import capabilities
from nfq_guard.conntrack.kernel_rules import KernelGuess
from nfq_guard.conntrack.log_text import Logged, parse_log
from nfq_guard.errors import BusyError, PrivilegeError, UnavailableError
from nfq_guard.finding import Reason
from nfq_guard.flow import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP
from nfq_guard.netlink.connection import Connection
from nfq_guard.netlink.messages import (
    FAMILY_HEADER,
    NLM_F_ACK,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_in,
    message,
)
from nfq_guard.wire.packet import Queued

# The only group to which conntrack logs.
GROUP: Final = 0
_SUBSYSTEM: Final = 4 << 8
_PACKET: Final = _SUBSYSTEM | 0
_CONFIG: Final = _SUBSYSTEM | 1
_CONFIG_COMMAND: Final = 1
_CONFIG_MODE: Final = 2
_CONFIG_TIMEOUT: Final = 4
_CONFIG_THRESHOLD: Final = 5
_CONFIG_FLAGS: Final = 6
_BIND: Final = b"\1"
_COPY_PACKET: Final = 2
_NUMBERED: Final = 1
_PAYLOAD: Final = 9
_PREFIX: Final = 10
_SEQUENCE: Final = 12
_MODE: Final = struct.Struct(">IBx")
_U32: Final = struct.Struct(">I")
_U16: Final = struct.Struct(">H")
_ANY_FAMILY: Final = 0
_MASK: Final = 0xFFFFFFFF

# Bytes of each packet that are copied: headers with options, or IPv6 with some extension headers.
_COPY_BYTES: Final = 256
_BUFFER_BYTES: Final = 4 << 20
# Maximum number of texts that wait for their packets. The queue holds 4096 packets by default.
_TEXTS_MAX: Final = 16_384
# Maximum number of messages read at once, in addition to some for each packet.
_READ_MAX: Final = 256
_READ_A_PACKET: Final = 16
# Maximum number of texts whose meaning is cached: before kernel 6.1 texts contain no numbers.
_MEANINGS_MAX: Final = 1024
# Time after a loss during which affected packets may still be in the queue, seconds.
_DOUBT_S: Final = 5.0
_NOTHING: Final[frozenset[Reason]] = frozenset()


class Netlink(Protocol):
    """The part of `netlink.connection.Connection` that the log uses."""

    def fileno(self) -> int:
        """The descriptor for epoll."""

    def enlarge(self, buffer_bytes: int) -> None:
        """Request a receive buffer of this size."""

    def send(self, octets: bytes) -> None:
        """Send messages."""

    def receive(self) -> list[tuple[int, int, bytes]] | None:
        """The messages of the next datagram; None if none waits."""

    def close(self) -> None:
        """Close it."""


@final
class _Text:
    """The newest text about packets of one identity.

    Attributes:
        logged: Its meaning.
        packets: Packets that it is about and that were not read from the queue yet.
    """

    __slots__ = ("logged", "packets")

    def __init__(self) -> None:
        self.logged = Logged(None)
        self.packets = 0


@final
class KernelLog:
    """`engine.PacketLog` of the network namespace in which it was created; it owns the group.

    Attributes:
        lost: Messages that the kernel sent but that did not arrive.
    """

    def __init__(
        self,
        kernel: KernelGuess,
        is_on: Callable[[], bool],
        *,
        connection: Netlink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind the group.

        Args:
            kernel: The rules and the log of this kernel.
            is_on: Whether the kernel logs at present.
            connection: Closed with this; a new one unless given.
            clock: Monotonic seconds.

        Raises:
            PrivilegeError: CAP_NET_ADMIN is missing.
            BusyError: Another program has the group, such as ulogd.
            UnavailableError: The kernel has no NFLOG.
        """
        self.lost = 0
        self._old_segments_pass = kernel.rules.old_segments_pass
        self._unlogged = kernel.log.silent
        self._is_on = is_on
        self._clock = clock
        self._texts: dict[bytes, _Text] = {}
        self._meanings: dict[str, Logged | None] = {}
        self._next = -1
        self._behind = False
        self._silent: frozenset[Reason] | None = None
        # Earlier messages may be missing.
        self._doubt_until = clock() + _DOUBT_S
        self._connection = connection or Connection()
        try:
            self._connection.enlarge(_BUFFER_BYTES)
            self._configure(attribute(_CONFIG_COMMAND, _BIND))
            self._configure(
                attribute(_CONFIG_MODE, _MODE.pack(_COPY_BYTES, _COPY_PACKET))
                # Deliver each message immediately: it must arrive before its packet.
                + attribute(_CONFIG_THRESHOLD, _U32.pack(1))
                + attribute(_CONFIG_TIMEOUT, _U32.pack(0))
                + attribute(_CONFIG_FLAGS, _U16.pack(_NUMBERED))
            )
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For epoll."""
        return self._connection.fileno()

    def texts(self, batch: Sequence[Queued]) -> list[Logged | None]:
        """The kernel's text about each packet; None without one."""
        self.read(_READ_MAX + _READ_A_PACKET * len(batch))
        self._silent = None
        texts = self._texts
        found: list[Logged | None] = []
        for queued in batch:
            key = identity(queued.octets)
            text = texts.get(key)
            if text is None:
                found.append(None)
                continue
            found.append(text.logged)
            text.packets -= 1
            if text.packets <= 0:
                del texts[key]
        return found

    def silent(self) -> frozenset[Reason]:
        """The reasons that the kernel does not log; empty while a missing text proves nothing.

        That is the case for some time after the start and after a loss, and while the kernel does
        not log.
        """
        if self._silent is None:
            sure = not self._behind and self._clock() >= self._doubt_until and self._is_on()
            self._silent = self._unlogged if sure else _NOTHING
        return self._silent

    def read(self, at_most: int = _READ_MAX) -> None:
        """Read waiting messages to make room for others; does not block."""
        for _ in range(at_most):
            try:
                received = self._connection.receive()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Lost messages are counted by their sequence numbers.
                self._doubt()
                continue
            if received is None:
                self._behind = False
                return
            for kind, _, body in received:
                if kind == _PACKET:
                    self._take(attributes(body[FAMILY_HEADER.size :]))
        self._behind = True

    def close(self) -> None:
        """Release the group."""
        self._connection.close()

    def _doubt(self) -> None:
        self._doubt_until = self._clock() + _DOUBT_S

    def _take(self, parts: dict[int, bytes]) -> None:
        number = parts.get(_SEQUENCE, b"")
        if len(number) == _U32.size:
            (this,) = _U32.unpack(number)
            if self._next >= 0 and this != self._next:
                self.lost += (this - self._next) & _MASK
                self._doubt()
            self._next = (this + 1) & _MASK
        logged = self._meaning(parts.get(_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace"))
        if logged is None:
            return
        texts = self._texts
        key = identity(parts.get(_PAYLOAD, b""))
        # Move the newest to the end.
        text = texts.pop(key, None) or _Text()
        text.logged = logged
        text.packets += 1
        texts[key] = text
        if len(texts) > _TEXTS_MAX:
            del texts[next(iter(texts))]

    def _meaning(self, text: str) -> Logged | None:
        """The meaning of a text; None unless it says that a packet is INVALID."""
        meanings = self._meanings
        if text in meanings:
            return meanings[text]
        if len(meanings) >= _MEANINGS_MAX:
            meanings.clear()
        logged = parse_log(text, old_segments_pass=self._old_segments_pass)
        meanings[text] = logged
        return logged

    def _configure(self, body: bytes) -> None:
        self._connection.send(message(_CONFIG, NLM_F_ACK, 1, _ANY_FAMILY, GROUP, body))
        while (received := self._connection.receive()) is not None:
            for kind, _, answer in received:
                if kind == NLMSG_ERROR:
                    _check(error_in(answer))
                    return
        raise UnavailableError("NFLOG group 0: the kernel does not respond")


def _check(code: int) -> None:
    """Raise the error of the kernel's response to a request, if any."""
    if code == 0:
        return
    lacking = capabilities.no_net_admin() if code == errno.EPERM else None
    if lacking is not None:
        raise PrivilegeError(f"NFLOG group 0 cannot be read: {lacking}")
    if code in {errno.EPERM, errno.EBUSY}:
        raise BusyError("another program, such as ulogd, reads NFLOG group 0")
    raise UnavailableError(
        "NFLOG (CONFIG_NETFILTER_NETLINK_LOG, module nfnetlink_log) is missing: "
        f"{os.strerror(code)}"
    )


def identity(octets: bytes) -> bytes:
    """Bytes by which a packet is recognised at a later hook.

    Excludes fields that the mangle table can change (TOS, TTL), and checksums, which are computed
    late.
    """
    if not octets:
        return b""
    if octets[0] >> 4 == 6:
        proto = octets[6] if len(octets) > 6 else 0
        head = octets[4:7] + octets[8:40]
        transport = octets[40:60]
    else:
        proto = octets[9] if len(octets) > 9 else 0
        start = (octets[0] & 15) << 2
        head = octets[2:8] + octets[9:10] + octets[12:20]
        transport = octets[start : start + 20]
    if proto == PROTO_TCP:
        return head + transport[:16]
    if proto == PROTO_UDP:
        return head + transport[:6] + transport[8:]
    if proto in {PROTO_ICMP, PROTO_ICMPV6}:
        return head + transport[:2] + transport[4:]
    return head + transport
