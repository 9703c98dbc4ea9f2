# SPDX-License-Identifier: MIT
"""Binds and reads one queue through a socket of netfilterqueue; the only importer of that library.

The library opens the socket, which the reader then uses itself, because the library lacks queue
flags, the state of checksums, counts of ENOBUFS and of failed verdicts, a budget for each turn,
several messages in one call, and a queue that outlives the process. It creates an object for each
packet, with which an accepted packet costs 2.1 times the CPU of a C program that only accepts; read
here, it costs about as much as in that program (benchmarks/README.md). It binds a queue by one
request and has it copy packets by the next, and the kernel drops those that come in between.
"""

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Self, final

from netfilterqueue import NetfilterQueue

from nfq_guard import capabilities
from nfq_guard.errors import (
    BusyError,
    NfqGuardError,
    PrivilegeError,
    ShortageError,
    UnavailableError,
    is_shortage,
)
from nfq_guard.netlink.connection import enlarge
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
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_CANNOT_BIND: Final = "a queue cannot be bound"
_NO_NFQUEUE: Final = (
    "this kernel has no NFQUEUE (CONFIG_NETFILTER_NETLINK_QUEUE, module nfnetlink_queue)"
)
_FLAG_NAMES: Final = {requests.CONFIG_FAIL_OPEN: "fail-open", requests.CONFIG_GSO: "gso"}


@final
class QueueReader:
    """One bound queue.

    Attributes:
        queue_num: Its number.
        socket: The socket that owns the queue, for epoll and for verdicts.
        taken_over: Whether an earlier process bound the queue.
        lost: Number of reads that gave ENOBUFS: the socket buffer had overrun since the last read.
        verdict_errors: Verdict messages all of whose packets no longer existed, as after an
            interface went down (kernel.md 5).
        wants_stamp: Whether to extract the timestamp of the first packet of a batch, which costs as
            much as reading the packet.
        stamp_us: When the kernel received that packet, in microseconds of the Unix epoch; 0 without
            a timestamp.
        unread: The highest id of packets that wait for a verdict and were read elsewhere, by the
            process from which the queue was taken over. Negative while unknown, which is until the
            first packet is read.
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
            ShortageError: Memory or descriptors are short.
        """
        self.queue_num = queue_num
        self.lost = 0
        self.verdict_errors = 0
        self.stamp_us = 0
        self.unread = 0
        self.missing = 0
        self.last_id = 0
        self.wants_stamp = False
        self.refused: list[str] = []
        self._names = InterfaceNames()
        self.taken_over = kept is not None and _owns(kept, queue_num)
        if kept is not None and not self.taken_over:
            release(kept, (queue_num,))  # if the owner of the queue is not visible
        if kept is not None and self.taken_over:
            self.socket = kept
            self.unread = -1
        else:
            self.socket = _opened()
        # If it stays smaller, a note in the log reports it.
        enlarge(self.socket, socket_buffer_bytes)
        # In one call, or packets would come before the flags whenever this process has to wait for
        # a CPU: with a queue of 64 and many packets the kernel dropped a thousand at some binds.
        self.socket.send(
            requests.config_queue(queue_num, copy_bytes, queue_length, bind=not self.taken_over)
            + requests.config_flags(queue_num, requests.CONFIG_FAIL_OPEN, on=fail_open)
            + requests.config_flags(queue_num, requests.CONFIG_GSO)
        )
        if not self.taken_over:
            self._raise_if_refused()
        self._inbox = Inbox(self.socket.fileno(), copy_bytes + _OVERHEAD)
        self._receive = self._inbox.receive

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

    def _raise_if_refused(self) -> None:
        """Raise why the kernel has not bound the queue.

        It answers at once, and only if it refuses. Otherwise, the first message is a packet, or
        about a flag.
        """
        try:
            answer = self.socket.recv(_OVERHEAD, socket.MSG_PEEK | _DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.lost += 1
            return
        found = requests.error_of(answer)
        if found is not None and found[1] not in _FLAG_NAMES:
            self.close()
            raise _refusal(self.queue_num, found[0])

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


def release(kept: socket.socket, queue_nums: Iterable[int]) -> None:
    """Unbind these queues where this socket owns them, and close it.

    Closing alone leaves a queue bound as long as another process, such as systemd, has the socket.
    """
    for queue_num in queue_nums:
        with suppress(OSError):
            kept.send(requests.config_unbind(queue_num))
    kept.close()


def _owns(kept: socket.socket, queue_num: int) -> bool:
    """Whether this socket owns the queue, in the calling thread's network namespace."""
    holder = counters.owner(queue_num)
    return holder is not None and is_socket_of(kept.fileno(), holder.port_id)


def _opened() -> socket.socket:
    """A socket to the kernel's queues, with an address of its own."""
    try:
        library = NetfilterQueue()
    except OSError as error:
        if is_shortage(error.errno):
            raise ShortageError(_short(error.errno)) from None
        lacking = capabilities.no_net_admin()
        if lacking is not None:
            raise PrivilegeError(f"{_CANNOT_BIND}: {lacking}") from None
        raise UnavailableError(_NO_NFQUEUE) from None
    try:
        opened = socket.socket(fileno=os.dup(library.get_fd()))
    except OSError as error:
        raise ShortageError(_short(error.errno)) from None
    # The library's object closes its descriptor when it is freed, in compiled code after its last
    # use. That is here.
    library.unbind()
    return opened


def _short(code: int | None) -> str:
    return f"no socket for the queue: {os.strerror(code or 0)}"


def _refusal(queue_num: int, code: int) -> NfqGuardError:
    """Why the kernel refused to bind the queue with this errno."""
    if is_shortage(code):
        return ShortageError(f"queue {queue_num} cannot be bound: {os.strerror(code)}")
    lacking = capabilities.no_net_admin()
    if lacking is not None:
        return PrivilegeError(f"{_CANNOT_BIND}: {lacking}")
    holder = counters.owner(queue_num)
    if holder is not None:
        process = process_of(holder.port_id)
        return BusyError(f"queue {queue_num} is owned by netlink port {holder.port_id}, {process}")
    if code == errno.EPERM and not counters.QUEUES.exists():
        return UnavailableError(_NO_NFQUEUE)
    if code == errno.EPERM:  # /proc does not show the process
        return BusyError(f"queue {queue_num} is owned by another process, unknown process")
    return UnavailableError(f"queue {queue_num} cannot be bound: {os.strerror(code)}")
