# SPDX-License-Identifier: MIT
"""Reads one queue that netfilterqueue bound; the only module that imports that library.

The library opens the socket and binds the queue. Then the reader uses the socket itself, because
the library lacks queue flags, the state of checksums, counts of ENOBUFS and of failed verdicts, a
budget for each turn, several messages in one call, and a queue that outlives the process. The
library creates an object for each packet, with which an accepted packet costs 2.1 times the CPU of
a C program that only accepts; read here, it costs about as much as in that program
(benchmarks/README.md).
"""

import errno
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, final

from netfilterqueue import COPY_PACKET, NetfilterQueue
from netfilterqueue import Packet as KernelPacket

from nfq_guard import capabilities
from nfq_guard.errors import BusyError, NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.netlink.connection import Connection, enlarge, responses
from nfq_guard.netlink.messages import NLMSG_ERROR, error_in
from nfq_guard.netlink.owner import is_socket_of, process_of
from nfq_guard.nfqueue import counters, requests
from nfq_guard.nfqueue.message import (
    InterfaceNames,
    is_error,
    length_of,
    packet_of,
    stamp_of,
)
from nfq_guard.nfqueue.receive import SLOTS, Inbox, reason
from nfq_guard.wire.packet import Queued

# Bytes of a message besides the packet: headers and every attribute that the kernel may add.
_OVERHEAD: Final = 512
_ID_MASK: Final = 0xFFFFFFFF
_BIND_TRIES: Final = 5
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_FLAG_NAMES: Final = {requests.CONFIG_FAIL_OPEN: "fail-open", requests.CONFIG_GSO: "gso"}


@final
class QueueReader:
    """One bound queue.

    Attributes:
        queue_num: Its number.
        socket: The socket that owns the queue, for epoll and for verdicts.
        taken_over: Whether an earlier process bound the queue.
        lost: Number of reads that gave ENOBUFS: the socket buffer had overrun since the last read.
        verdict_errors: Verdicts for packets that no longer existed, as after an interface was
            flushed.
        wants_stamp: Whether to extract the timestamp of the first packet of a batch, which costs as
            much as reading the packet.
        stamp_us: When the kernel received that packet, in microseconds of the Unix epoch; 0 without
            a timestamp.
        unread: The highest id of packets that wait for a verdict and were read elsewhere: by the
            library, which discards them while it waits for the answers to its requests, or by the
            process from which the queue was taken over. Negative until the first packet is read.
        missing: Packets that were queued but whose message was lost because the buffer was full, by
            the ids of later packets.
        last_id: Id of the last packet that was read; 0 before the first.
        refused: Queue flags that this kernel does not support, by name.
    """

    def __init__(
        self,
        queue_num: int,
        *,
        queue_length: int = 4096,
        copy_bytes: int = 256,
        socket_buffer_bytes: int = 4 << 20,
        fail_open: bool = True,
        kept: socket.socket | None = None,
    ) -> None:
        """Bind the queue in the calling thread's network namespace, or take it over.

        Args:
            queue_num: Number of the queue.
            queue_length: Packets that may wait for a verdict in the kernel.
            copy_bytes: Bytes of each packet that the kernel copies.
            socket_buffer_bytes: Requested size; the kernel doubles it for its own needs.
            fail_open: Whether packets pass when the queue or the buffer is full.
            kept: The socket of an earlier process; closed if it does not own the queue.

        Raises:
            BusyError: Another process owns this queue.
            PrivilegeError: CAP_NET_ADMIN is missing.
            UnavailableError: This kernel has no NFQUEUE.
            NfqGuardError: The library failed several times to bind a queue that is free.
        """
        self.queue_num = queue_num
        self.lost = 0
        self.verdict_errors = 0
        self.stamp_us = 0
        self.unread = -1
        self.missing = 0
        self.last_id = 0
        self.wants_stamp = False
        self.refused: list[str] = []
        self._names = InterfaceNames()
        self.taken_over = kept is not None and _owns(kept, queue_num)
        if kept is not None and not self.taken_over:
            # If the owner of the queue is not visible.
            with suppress(OSError):
                kept.send(requests.config_unbind(queue_num))
            kept.close()
        if kept is not None and self.taken_over:
            self.socket = kept
            self._configure(queue_length, copy_bytes, socket_buffer_bytes)
        else:
            self.socket = _bound(queue_num, queue_length, copy_bytes, socket_buffer_bytes)
        self._inbox = Inbox(self.socket.fileno(), copy_bytes + _OVERHEAD)
        self._receive = self._inbox.receive
        self.socket.send(requests.config_flags(queue_num, requests.CONFIG_GSO))
        self.set_fail_open(on=fail_open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def socket_buffer_bytes(self) -> int:
        """The size that the kernel granted, without its doubling."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    def fileno(self) -> int:
        """The descriptor for epoll."""
        return self.socket.fileno()

    def drain(self, budget: int) -> tuple[list[int], list[Queued]]:
        """Read the packets that wait at the socket, at most `budget`, with their ids, in order."""
        ids: list[int] = []
        batch: list[Queued] = []
        names = self._names
        inbox = self._inbox
        slot_bytes = inbox.slot_bytes
        left = budget
        stamp = self.wants_stamp
        while left > 0:
            wanted = min(left, SLOTS)
            count = self._receive(wanted, _DONTWAIT, None)
            if count < 0:
                if not self._has_lost():
                    break
                left -= 1
                continue
            octets: bytes = inbox.room[: count * slot_bytes]
            start = 0
            for _ in range(count):
                end = start + min(length_of(octets, start), slot_bytes)
                if is_error(octets, start):
                    self._note_error(octets[start:end])
                else:
                    if stamp and not ids:
                        self.stamp_us = stamp_of(octets, start, end)
                    packet_id, queued = packet_of(octets, start, end, names)
                    ids.append(packet_id)
                    batch.append(queued)
                start += slot_bytes
            left -= count
            if count < wanted:
                break
        if ids:
            last = ids[-1]
            if self.unread < 0:
                self.unread = self.last_id = ids[0] - 1 & _ID_MASK
            self.missing += (last - self.last_id - len(ids)) & _ID_MASK
            self.last_id = last
        return ids, batch

    def set_fail_open(self, *, on: bool) -> None:
        """Set whether packets pass when the queue or the buffer is full."""
        self.socket.send(requests.config_flags(self.queue_num, requests.CONFIG_FAIL_OPEN, on=on))

    def forget_names(self) -> None:
        """Forget cached interface names: an interface may have been renamed."""
        self._names.forget()

    def close(self) -> None:
        """Close the socket.

        Unless another process holds it, that unbinds the queue, and the kernel drops waiting
        packets.
        """
        self.socket.close()

    def _configure(self, queue_length: int, copy_bytes: int, buffer_bytes: int) -> None:
        """Configure the queue as the library does when it binds."""
        self.socket.send(requests.config_copy(self.queue_num, copy_bytes))
        self.socket.send(requests.config_length(self.queue_num, queue_length))
        enlarge(self.socket, buffer_bytes)  # if it stays smaller, a note in the log reports it

    def _has_lost(self) -> bool:
        """Whether the last read failed because messages were lost; False if nothing waits."""
        code = reason()
        if code == errno.ENOBUFS:
            self.lost += 1
        elif code not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(code, os.strerror(code))
        return code == errno.ENOBUFS

    def _note_error(self, message: bytes) -> None:
        found = requests.error_of(message)
        if found is None or found[0] == 0:
            return
        name = _FLAG_NAMES.get(found[1])
        if found == (errno.ENOENT, requests.UNREAD):
            return  # there was no such packet
        if name is None:
            self.verdict_errors += 1
        elif name not in self.refused:
            self.refused.append(name)


def _bound(
    queue_num: int, queue_length: int, copy_bytes: int, socket_buffer_bytes: int
) -> socket.socket:
    """The socket of a queue that the library has bound; arguments and errors as `QueueReader`."""
    for _ in range(_BIND_TRIES):
        queue = _opened()
        # The library waits for the kernel's answers among packets; if these overrun the buffer
        # meanwhile, it reports that the kernel refused.
        with socket.socket(fileno=os.dup(queue.get_fd())) as early:
            enlarge(early, socket_buffer_bytes)
        if _bind(queue, queue_num, queue_length, copy_bytes, socket_buffer_bytes):
            break
        _raise_unless_free(queue_num)
    else:
        raise NfqGuardError(
            f"queue {queue_num} cannot be bound, though no process owns it: perhaps its packets"
            f" fill the socket buffer of {socket_buffer_bytes} bytes before the kernel has answered"
        )
    bound = socket.socket(fileno=os.dup(queue.get_fd()))
    # The library's object unbinds its queue when it is freed, in compiled code after its last use.
    # That happens here, with another file in place of its socket.
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), queue.get_fd(), inheritable=False)
    queue.unbind()
    return bound


def _bind(
    queue: NetfilterQueue,
    queue_num: int,
    queue_length: int,
    copy_bytes: int,
    socket_buffer_bytes: int,
) -> bool:
    """Bind a queue by the library, which does not report why it failed."""
    with warnings.catch_warnings():
        # The buffer is smaller than requested; a note in the log reports it.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            queue.bind(
                queue_num,
                _never_called,
                queue_length,
                # Immediately: packets of a bound queue that does not copy yet are dropped.
                COPY_PACKET,
                copy_bytes,
                socket_buffer_bytes,
            )
        except OSError:
            return False
    return True


def _owns(kept: socket.socket, queue_num: int) -> bool:
    """Whether this socket owns the queue, in the calling thread's network namespace."""
    holder = counters.owner(queue_num)
    return holder is not None and is_socket_of(kept.fileno(), holder.port_id)


def _never_called(_packet: KernelPacket) -> None:
    """The callback that the library requires; nothing is read through it."""


def _opened() -> NetfilterQueue:
    try:
        return NetfilterQueue()
    except OSError:
        if not capabilities.has(capabilities.NET_ADMIN):
            raise PrivilegeError("binding a queue needs the capability CAP_NET_ADMIN") from None
        raise _no_nfqueue() from None


def _no_nfqueue() -> UnavailableError:
    return UnavailableError(
        "this kernel has no NFQUEUE (CONFIG_NETFILTER_NETLINK_QUEUE, module nfnetlink_queue)"
    )


def _raise_unless_free(queue_num: int) -> None:
    """Raise why the kernel refuses the queue."""
    if not capabilities.has(capabilities.NET_ADMIN):
        raise PrivilegeError("binding a queue needs the capability CAP_NET_ADMIN")
    holder = counters.owner(queue_num)
    if holder is not None:
        process = process_of(holder.port_id)
        raise BusyError(f"queue {queue_num} is owned by netlink port {holder.port_id}, {process}")
    # On a socket of its own, which packets cannot reach.
    with Connection() as probe:
        probe.send(requests.config_bind(queue_num))
        codes = [error_in(body) for kind, _, body in responses(probe) if kind == NLMSG_ERROR]
    code = max(codes, default=0)
    if code == errno.EPERM and not counters.QUEUES.exists():
        raise _no_nfqueue()
    if code == errno.EPERM:  # /proc does not show the process
        raise BusyError(f"queue {queue_num} is owned by another process, unknown process")
    if code:
        raise UnavailableError(f"queue {queue_num} cannot be bound: {os.strerror(code)}")
