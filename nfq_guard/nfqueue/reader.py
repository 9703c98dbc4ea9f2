# SPDX-License-Identifier: MIT
"""Reads one queue that netfilterqueue bound; the only module that imports it.

The library binds the queue, owns the socket and unbinds. What it lacks (operations.md 4.2) is done
beside it on a duplicate of that socket: queue flags, the kernel's word on checksums, ENOBUFS
counted, errors of verdicts counted, a budget a turn. No verdict is given through the library.
Messages are read beside it too, many a call: by its own reading, which makes a `Packet` and hands
each of its numbers over by a call, an accepted packet costs 2.1 times the CPU of a C program that
only accepts; by ours, about as much as there (benchmarks/README.md).
"""

import errno
import os
import socket
import warnings
from pathlib import Path
from typing import Final, Self, final

from netfilterqueue import COPY_PACKET, NetfilterQueue
from netfilterqueue import Packet as KernelPacket

from nfq_guard.errors import BusyError, NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.nfqueue import counters, netlink
from nfq_guard.nfqueue.message import InterfaceNames, is_error, length_of, packet_of
from nfq_guard.nfqueue.receive import SLOTS, Inbox, reason
from nfq_guard.wire.packet import Queued

# Octets of a message beside the packet: headers and every attribute that the kernel may add.
_OVERHEAD: Final = 512
_CAP_NET_ADMIN: Final = 1 << 12
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_FLAG_NAMES: Final = {netlink.CONFIG_FAIL_OPEN: "fail-open", netlink.CONFIG_GSO: "gso"}


@final
class QueueReader:
    """One bound queue.

    Attributes:
        queue_num: Its number.
        socket: A duplicate of the library's socket, for epoll and for verdicts.
        lost: How often the kernel said ENOBUFS: our socket's buffer ran over since the last read.
        verdict_errors: Verdicts for packets that were gone, as after an interface was flushed.
        refused: Queue flags that this kernel does not have, by name.
    """

    def __init__(
        self,
        queue_num: int,
        *,
        queue_length: int = 4096,
        copy_bytes: int = 256,
        socket_buffer_bytes: int = 4 << 20,
        fail_open: bool = True,
    ) -> None:
        """Bind the queue in the calling thread's network namespace.

        Args:
            queue_num: Number of the queue.
            queue_length: Packets that may wait for a verdict in the kernel.
            copy_bytes: Octets of each packet that the kernel copies to us.
            socket_buffer_bytes: Size asked for; the kernel doubles it for its own needs.
            fail_open: Whether packets pass, not drop, when the queue or the buffer is full.

        Raises:
            BusyError: Somebody else has this queue.
            PrivilegeError: CAP_NET_ADMIN is missing.
            UnavailableError: This kernel has no NFQUEUE.
        """
        self.queue_num = queue_num
        self.lost = 0
        self.verdict_errors = 0
        self.refused: list[str] = []
        self._names = InterfaceNames()
        self._queue = _opened()
        with warnings.catch_warnings():
            # That less buffer was granted than asked for is for the operator's log.
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                self._queue.bind(
                    queue_num,
                    _unasked,
                    queue_length,
                    COPY_PACKET,
                    copy_bytes,
                    socket_buffer_bytes,
                )
            except OSError:
                raise _why_not(self._queue, queue_num) from None
        os.set_inheritable(self._queue.get_fd(), False)  # noqa: FBT003 - its only spelling
        self.socket = socket.socket(fileno=os.dup(self._queue.get_fd()))
        self._inbox = Inbox(self.socket.fileno(), copy_bytes + _OVERHEAD)
        self._receive = self._inbox.receive
        self.socket.send(netlink.config_flags(queue_num, netlink.CONFIG_GSO))
        self.set_fail_open(on=fail_open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def socket_buffer_bytes(self) -> int:
        """The size that the kernel granted, its own doubling taken off."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    def fileno(self) -> int:
        """For epoll."""
        return self.socket.fileno()

    def drain(self, budget: int) -> tuple[list[int], list[Queued]]:
        """The packets that wait at the socket, at most `budget`, with their ids in order."""
        ids: list[int] = []
        batch: list[Queued] = []
        names = self._names
        inbox = self._inbox
        slot_bytes = inbox.slot_bytes
        left = budget
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
                    packet_id, queued = packet_of(octets, start, end, names)
                    ids.append(packet_id)
                    batch.append(queued)
                start += slot_bytes
            left -= count
            if count < wanted:
                break
        return ids, batch

    def set_fail_open(self, *, on: bool) -> None:
        """Say whether packets pass, not drop, when the queue or the buffer is full."""
        self.socket.send(netlink.config_flags(self.queue_num, netlink.CONFIG_FAIL_OPEN, on=on))

    def forget_names(self) -> None:
        """Look up interface names anew: an index may have got another name."""
        self._names.forget()

    def close(self) -> None:
        """Unbind; packets that still wait are dropped by the kernel."""
        self._queue.unbind()
        self.socket.close()

    def _has_lost(self) -> bool:
        """Whether nothing could be read because messages were lost; else nothing waits."""
        code = reason()
        if code == errno.ENOBUFS:
            self.lost += 1
        elif code not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(code, os.strerror(code))
        return code == errno.ENOBUFS

    def _note_error(self, message: bytes) -> None:
        found = netlink.error_of(message)
        if found is None or found[0] == 0:
            return
        name = _FLAG_NAMES.get(found[1])
        if name is None:
            self.verdict_errors += 1
        elif name not in self.refused:
            self.refused.append(name)


def _unasked(_packet: KernelPacket) -> None:
    """The library wants to call something; it is never asked to read."""


def _opened() -> NetfilterQueue:
    try:
        return NetfilterQueue()
    except OSError:
        if not has_net_admin():
            raise PrivilegeError("binding a queue needs the capability CAP_NET_ADMIN") from None
        raise _no_nfqueue() from None


def _no_nfqueue() -> UnavailableError:
    return UnavailableError(
        "this kernel has no NFQUEUE (CONFIG_NETFILTER_NETLINK_QUEUE, module nfnetlink_queue)"
    )


def _why_not(queue: NetfilterQueue, queue_num: int) -> NfqGuardError:
    """Why the kernel refused the queue; the library does not say."""
    if not has_net_admin():
        return PrivilegeError("binding a queue needs the capability CAP_NET_ADMIN")
    holder = counters.owner(queue_num)
    if holder is not None:
        process = counters.process_of(holder.port_id)
        return BusyError(f"queue {queue_num} is owned by netlink port {holder.port_id}, {process}")
    with socket.socket(fileno=os.dup(queue.get_fd())) as probe:
        probe.send(netlink.config_bind(queue_num))
        answer = netlink.error_of(probe.recv(_OVERHEAD, socket.MSG_DONTWAIT))
    code = answer[0] if answer is not None else 0
    if code == errno.EPERM and not counters.QUEUES.exists():
        return _no_nfqueue()
    if code in {0, errno.EPERM}:
        # Gone since, or owned by somebody whom /proc does not show us.
        return BusyError(f"queue {queue_num} is owned by another process, unknown process")
    return UnavailableError(f"queue {queue_num} cannot be bound: {os.strerror(code)}")


def has_net_admin() -> bool:
    """Whether this thread has CAP_NET_ADMIN in effect."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_NET_ADMIN)
    return False
