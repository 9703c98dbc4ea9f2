# SPDX-License-Identifier: MIT
"""Messages between the daemon and its worker processes, and the channel that carries them.

Each message is a class: the daemon sends an `Order`, a worker a `Report`. On the wire a message is
one MessagePack record of a SOCK_SEQPACKET pair. Neither side blocks: a record for which the buffer
has no room is dropped, `send` returns False, and `unsent` is called with a description.

A record that is truncated, cannot be decoded or has an unknown type is dropped, and `refuse` is
called with a description; no exception is raised.
"""

import errno
import socket
from collections.abc import Callable
from typing import Final, Generic, TypeVar, final

import msgspec

from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.raw_rules import RawRule
from nfq_guard.service.worker.history import DumpEntry

_RECORD_MAX_BYTES: Final = 1 << 19
# A worker that sends many records must not starve the other descriptors of the loop.
_RECORDS_A_TURN: Final = 64
_BUFFER_BYTES: Final = 4 << 20
# asm-generic/socket.h; Python does not name it.
_SO_SNDBUFFORCE: Final = 32


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """One record."""


@final
class Stop(_Message, frozen=True, tag="stop"):
    """Send the verdicts of all waiting packets, unbind the queue and exit."""


@final
class SetMode(_Message, frozen=True, tag="set-mode"):
    """Judge in `mode` from the next turn on.

    Attributes:
        mode: The mode.
        unjudged_mark: Mark bits that the rules set on a packet before they queue it.
    """

    mode: Mode
    unjudged_mark: int


@final
class SetRawRules(_Message, frozen=True, tag="set-raw-rules"):
    """Allow packets that these rules make INVALID, from the next turn on."""

    rules: tuple[RawRule, ...]


@final
class Prepare(_Message, frozen=True, tag="prepare"):
    """Read and check the policy on disk; reply `Prepared` or `Refused`.

    Attributes:
        reload: Number of the reload, the same in all messages that belong to it.
    """

    reload: int


@final
class Commit(_Message, frozen=True, tag="commit"):
    """Judge by the policy prepared for `reload` from the next turn on."""

    reload: int


@final
class Abort(_Message, frozen=True, tag="abort"):
    """Discard the policy prepared for `reload`."""

    reload: int


@final
class Dump(_Message, frozen=True, tag="dump"):
    """Reply with `Flows`.

    Attributes:
        dump: Number of the dump, the same in each reply to it.
        address: Only flows with this address; None for all.
        flows: Maximum number of flows or packets.
        packets: Whether packets are requested instead of flows.
    """

    dump: int
    address: str | None
    flows: int
    packets: bool


@final
class Count(_Message, frozen=True, tag="count"):
    """Read the kernel's counters, and reply with `Numbers`, then `Counted`."""


Order = Stop | SetMode | SetRawRules | Prepare | Commit | Abort | Dump | Count


@final
class Ready(_Message, frozen=True, tag="ready"):
    """The queue is bound and served.

    Attributes:
        socket_buffer_bytes: Receive buffer of the queue's socket, as granted.
        flags_refused: Flags of the queue that the kernel does not support.
        evidence: Where flows are looked up.
        evidence_reason: Why there is no better evidence; None if there is none.
        notes: Notes for the operator.
    """

    socket_buffer_bytes: int
    flags_refused: list[str]
    evidence: Evidence
    evidence_reason: str | None
    notes: list[str]


@final
class Failed(_Message, frozen=True, tag="failed"):
    """The worker ends: its queue cannot be served, or an exception was not handled.

    Attributes:
        problem: One line, or the traceback.
        exit_status: `NfqGuardError.exit_status` of the error; None for any other exception.
    """

    problem: str
    exit_status: int | None = None


@final
class Numbers(_Message, frozen=True, tag="numbers"):
    """The counts of the worker since its start (`telemetry.metrics.Stats`).

    Attributes:
        judged: Packets by reason and action.
        rules: Packets by rule.
        counters: By name.
        gauges: By name.
        evidence: Where flows are looked up.
        evidence_reason: Why there is no better evidence.
        histograms: As returned by `Stats.plain`.
        messages_refused: Orders that were refused, and reports for which there was no room.
        last_error: The last event of level error.
    """

    judged: dict[str, dict[str, int]]
    rules: dict[str, int]
    counters: dict[str, int]
    gauges: dict[str, float]
    evidence: Evidence
    evidence_reason: str | None
    histograms: dict[str, list[int]]
    messages_refused: int
    last_error: dict[str, object] | None


@final
class Counted(_Message, frozen=True, tag="counted"):
    """The last `Numbers` have what the kernel had counted at the order `Count`."""


@final
class Prepared(_Message, frozen=True, tag="prepared"):
    """The policy is read and valid; `digest` identifies it."""

    reload: int
    digest: str


@final
class Refused(_Message, frozen=True, tag="refused"):
    """The policy cannot be used."""

    reload: int
    problem: str


@final
class Flows(_Message, frozen=True, tag="flows"):
    """A part of a dump.

    Attributes:
        dump: Number of the dump.
        flows: A part of the flows or packets.
        complete: Whether this was the last part.
        problem: Why the packets cannot be dumped; empty if they can.
    """

    dump: int
    flows: list[DumpEntry]
    complete: bool
    problem: str = ""


Report = Ready | Failed | Numbers | Counted | Prepared | Refused | Flows

Refuse = Callable[[str], None]
# The other end is closed: its process has ended, which has an event of its own.
_CLOSED: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
SentT = TypeVar("SentT", bound=_Message)
ReceivedT = TypeVar("ReceivedT")


@final
class RecordSocket:
    """One end of a pair: sends and receives whole records without blocking.

    Attributes:
        refuse: Takes the reason why a record is dropped.
    """

    def __init__(self, end: socket.socket, refuse: Refuse) -> None:
        """Own `end`; `refuse` gets the reason why a record is dropped."""
        self._socket = end
        self.refuse = refuse
        self._buffer = memoryview(bytearray(_RECORD_MAX_BYTES))
        end.settimeout(0)
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def fileno(self) -> int:
        """For epoll."""
        return self._socket.fileno()

    def send(self, record: bytes) -> None:
        """Send without blocking.

        Raises:
            OSError: The other end is closed, or its buffer is full.
        """
        self._socket.send(record, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def receive(self, at_most: int | None = _RECORDS_A_TURN) -> list[bytes] | None:
        """The received records; None once the other end is closed and no record is left.

        With `at_most` None there is no limit to their number.
        """
        found: list[bytes] = []
        taken = 0
        was_reset = False
        while at_most is None or taken < at_most:
            try:
                size, _, flags, _ = self._socket.recvmsg_into(
                    [self._buffer], 0, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return found
            except OSError as error:
                # If the other end was closed with unread records, this end gets ECONNRESET once,
                # before the records that it has not read yet.
                if error.errno == errno.ECONNRESET and not was_reset:
                    was_reset = True
                    continue
                size = flags = 0
            if size == 0:
                return found if taken else None
            taken += 1
            if flags & socket.MSG_TRUNC:
                self.refuse(f"larger than {_RECORD_MAX_BYTES} bytes")
            else:
                found.append(bytes(self._buffer[:size]))
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@final
class Channel(Generic[SentT, ReceivedT]):
    """Typed messages over a `RecordSocket`."""

    def __init__(
        self,
        end: socket.socket,
        decoder: msgspec.msgpack.Decoder[ReceivedT],
        refuse: Refuse,
        unsent: Refuse,
    ) -> None:
        """Own `end`.

        Args:
            end: The socket.
            decoder: Decodes received messages.
            refuse: Gets the reason why a received message is dropped.
            unsent: Gets the reason why a message to an open end is dropped.
        """
        self._records = RecordSocket(end, refuse)
        self._decoder = decoder
        self._refuse = refuse
        self._unsent = unsent
        # Fields of events may have any type that their renderer can print.
        self._encoder = msgspec.msgpack.Encoder(enc_hook=str)

    def fileno(self) -> int:
        """For epoll."""
        return self._records.fileno()

    def send(self, message: SentT) -> bool:
        """Send without blocking. False: the other end is closed, or there is no room."""
        try:
            self._records.send(self._encoder.encode(message))
        except OSError as error:
            if error.errno not in _CLOSED:
                kind = message.__struct_config__.tag
                self._unsent(f"no room for a message '{kind}': {error.strerror}")
            return False
        return True

    def receive(self, at_most: int | None = _RECORDS_A_TURN) -> list[ReceivedT] | None:
        """As `RecordSocket.receive`, decoded."""
        records = self._records.receive(at_most)
        if records is None:
            return None
        found: list[ReceivedT] = []
        for record in records:
            try:
                found.append(self._decoder.decode(record))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._refuse(str(error))
        return found

    def close(self) -> None:
        """Close the socket."""
        self._records.close()


DaemonChannel = Channel[Order, Report]
"""The daemon's end."""

WorkerChannel = Channel[Report, Order]
"""The worker's end."""


def daemon_channel(end: socket.socket, refuse: Refuse, unsent: Refuse) -> DaemonChannel:
    """Make the daemon's end of a channel; arguments as for `Channel`."""
    return Channel(end, msgspec.msgpack.Decoder(Report), refuse, unsent)


def worker_channel(end: socket.socket, refuse: Refuse, unsent: Refuse) -> WorkerChannel:
    """Make the worker's end of a channel; arguments as for `Channel`."""
    return Channel(end, msgspec.msgpack.Decoder(Order), refuse, unsent)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, both closed on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
