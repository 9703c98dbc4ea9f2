# SPDX-License-Identifier: MIT
"""Reads events of packets from JSON Lines: those of the daemon, also as EVE, or of the journal.

Entries of the journal are those that `journalctl -o json` prints. The log of a container may be as
its runtime keeps it on the node (containerd, CRI-O, Docker), or as `kubectl logs` prints it with
`--timestamps` or `--prefix`: each event then follows a few words, or is a string of another object.

The file may be damaged or hostile. A line that is not an event, or has a value that no packet can
have, is skipped and counted. A line longer than any event is skipped without being
kept in memory.
"""

import codecs
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO, Final, NamedTuple, final

import msgspec

from nfq_guard.finding import BOUNDS
from nfq_guard.flow import IPV4, IPV6
from nfq_guard.names import (
    StatusName,
    address_bytes,
    flow_status,
    hook_number,
    protocol_number,
    tcp_flag_bits,
    tcp_state_number,
)
from nfq_guard.telemetry.events import (
    AllowedUnrecorded,
    EventsSuppressed,
    KernelDroppedPackets,
    KernelPassedPackets,
    LogLinesDropped,
    Offloaded,
    PacketJudged,
    PacketsShed,
    PacketsUnjudged,
    PacketsUnrecorded,
    PacketsUnserved,
    UnservedTime,
    name_of,
)
from nfq_guard.telemetry.journal import fields_of

# An event is shorter than a tenth of this.
LINE_MAX_BYTES: Final = 1 << 16
# Plausible times of a host's clock; some times beyond them overflow in other time zones.
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 2261
# Maximum of `log_interval_s`, plus the delay of a busy daemon.
_LONGEST_FOLD_S: Final = 86_400 + 3600
_ADDRESS_BYTES: Final = {IPV4: 4, IPV6: 16}
# A field of every entry of `journalctl -o json`, but of no event.
_JOURNAL_MARK: Final = b'"__REALTIME_TIMESTAMP"'
# The beginning of a line in the format `eve`, and of no other line.
_EVE_START: Final = b'{"timestamp":'
# The beginning of any other line of the daemon.
_EVENT_START: Final = b'{"event":'
# The beginning of a line of Docker's driver `json-file`.
_DOCKER_START: Final = b'{"log":"'
# Longest text that a runtime or `kubectl` writes before a line: a time, and the names of a
# namespace, a pod and a container.
_PREFIX_MAX_BYTES: Final = 640
_PACKET_JUDGED: Final = name_of(PacketJudged)
# By the name of an event that counts what is missing: the number of `Unrecorded`, and the fields of
# the event that add to it.
_GAPS: Final = {
    name_of(EventsSuppressed): ("suppressed", ("packets",)),
    name_of(KernelDroppedPackets): ("kernel_dropped", ("since_last",)),
    name_of(KernelPassedPackets): ("kernel_passed", ("since_last",)),
    name_of(PacketsShed): ("shed", ("packets",)),
    name_of(PacketsUnjudged): ("unjudged", ("unread", "failed")),
    name_of(PacketsUnserved): ("unjudged", ("packets",)),
    name_of(Offloaded): ("offloaded", ("offload_drops",)),
    name_of(AllowedUnrecorded): ("allowed", ("packets",)),
    name_of(PacketsUnrecorded): ("lost_judged", ("packets",)),
    name_of(LogLinesDropped): ("lost_lines", ("lines",)),
    name_of(UnservedTime): ("unserved_s", ("unserved_s",)),
}
# What follows such a number.
_TEXTS: Final = {
    "suppressed": "packets have no event: a limit of events was hit",
    "allowed": "packets have no event: allowed without log_allowed",
    "offloaded": "packets have no event: the kernel dropped them",
    "kernel_dropped": "packets were never judged: the queue was full",
    "kernel_passed": "packets passed unjudged: the queue was full, or its worker replaced",
    "shed": "packets were never judged: above max_rate_pps",
    "unjudged": "packets were never judged: the daemon or a worker failed",
    "lost_judged": "packets have no event: the process that judged them was killed",
    "lost_lines": "lines are lost: their packets are unknown",
    "unserved_s": "s without a daemon: the packets of that time are unknown",
}

# The same of one packet or line.
_OF_ONE: Final = {
    "packets have": "packet has",
    "packets were": "packet was",
    "packets passed": "packet passed",
    "lines are lost: their": "line is lost: its",
}

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]
_Word = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class _AsWritten(PacketJudged, frozen=True, kw_only=True, tag=_PACKET_JUDGED):
    """`packet_judged` of any release: early ones lack some fields."""

    mark: _Word = 0
    # Earlier daemons wrote the `IPS_*` bits.
    status: tuple[StatusName, ...] | _Word | None = None  # type: ignore[assignment] # until `__post_init__`
    ct_mark: _Word | None = None

    def __post_init__(self) -> None:
        """Give `status` the type of its base class."""
        if isinstance(self.status, int):
            msgspec.structs.force_setattr(self, "status", flow_status(self.status))


class _Name(msgspec.Struct):
    event: str


class _Eve(msgspec.Struct):
    nfq_guard: msgspec.Raw


class _Logged(msgspec.Struct):
    log: str


class ReadEvent(NamedTuple):
    """One event.

    Attributes:
        line: Its line, counted from 1; 0 without one.
        when: Its time, in UTC.
        first: Time of the first packet that it represents; `when` for one packet.
        event: Its fields; every value is one that `nfq_guard.names` can read.
    """

    line: int
    when: datetime
    first: datetime
    event: PacketJudged


class Unrecorded(msgspec.Struct, kw_only=True):
    """Packets that a recording reports as missing.

    Attributes:
        suppressed: Packets without an event because of the limit on all events, or of the size of
            the file.
        kernel_dropped: Packets that the kernel dropped before they could be judged.
        kernel_passed: Packets that passed unjudged: more than could be judged, or without a worker.
        shed: Packets above `max_rate_pps`, which were left to the fail mode.
        unjudged: Packets that were left to the fail mode, because a daemon or worker failed.
        offloaded: Packets that the kernel dropped by order of the policy then in force.
        allowed: Packets that the policy then in force allowed, without `log_allowed`.
        lost_judged: Packets that a process had judged, and that had no event when it was killed.
        lost_lines: Lines that the log lost; each may represent any number of packets.
        unserved_s: Seconds without a daemon, with any number of packets.
    """

    suppressed: int = 0
    kernel_dropped: int = 0
    kernel_passed: int = 0
    shed: int = 0
    unjudged: int = 0
    offloaded: int = 0
    allowed: int = 0
    lost_judged: int = 0
    lost_lines: int = 0
    unserved_s: float = 0

    def texts(self) -> list[str]:
        """One line for each kind of gap."""
        counts = ((getattr(self, name), text) for name, text in _TEXTS.items())
        return [
            f"{count:,} {_of_one(text) if count == 1 else text}" for count, text in counts if count
        ]


class _Gap(msgspec.Struct):
    """The fields of the events that count what is missing."""

    packets: _Count = 0
    since_last: _Count = 0
    offload_drops: _Count = 0
    lines: _Count = 0
    unread: _Count = 0
    failed: _Count = 0
    unserved_s: _Seconds = 0


@final
class EventReader:
    """Reads one stream.

    Attributes:
        lines: Lines read, empty ones included.
        skipped: Lines that are not events.
        first_skipped: Number of the first of them; 0 without any.
        others: Number of events other than `packet_judged`.
        unrecorded: The missing packets by these events.
    """

    def __init__(self) -> None:
        """Start before the first line."""
        self.lines = 0
        self.skipped = 0
        self.first_skipped = 0
        self.others = 0
        self.unrecorded = Unrecorded()
        self._event = msgspec.json.Decoder(_AsWritten)
        self._eve = msgspec.json.Decoder(_Eve)
        self._logged = msgspec.json.Decoder(_Logged)
        self._name = msgspec.json.Decoder(_Name)
        self._gap = msgspec.json.Decoder(_Gap)

    def read(self, stream: BinaryIO) -> Iterator[ReadEvent]:
        """The `packet_judged` events of a stream, in its order."""
        while line := stream.readline(LINE_MAX_BYTES):
            self.lines += 1
            if self.lines == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) == LINE_MAX_BYTES and not line.endswith(b"\n"):
                self._skip()
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LINE_MAX_BYTES)
            elif line.strip():
                found = self._read_line(line)
                if found is not None:
                    yield found

    def skipped_text(self) -> str:
        """`skipped 3 lines that are not events`; empty if there are none."""
        if not self.skipped:
            return ""
        if self.skipped == 1:
            return "skipped 1 line that is not an event"
        return f"skipped {self.skipped:,} lines that are not events"

    def _read_line(self, line: bytes) -> ReadEvent | None:
        try:
            if not line.startswith(_EVENT_START):
                line = self._unwrapped(line)
            from_journal = _JOURNAL_MARK in line
            if line.startswith(_EVE_START):
                line = bytes(self._eve.decode(line).nfq_guard)
            elif from_journal:
                line = self._of_journal(line)
            event = self._event.decode(line)
            when = _checked(event)
            return ReadEvent(self.lines, when, _first(event, when), event)
        except (msgspec.MsgspecError, ValueError, KeyError, OverflowError, RecursionError):
            if self._is_other(line):
                self.others += 1
            else:
                self._skip()
            return None

    def _unwrapped(self, line: bytes) -> bytes:
        """A line of a container's log without what its runtime or `kubectl` added."""
        if line.startswith(_DOCKER_START):
            return self._logged.decode(line).log.encode()
        if not line.startswith(b"{"):
            at = line.find(b"{", 0, _PREFIX_MAX_BYTES)
            if at > 0 and line.startswith((_EVENT_START, _EVE_START), at):
                return line[at:]
        return line

    def _of_journal(self, line: bytes) -> bytes:
        """The event of a journal entry, in the form that the daemon writes to a file."""
        fields = fields_of(msgspec.json.decode(line, type=dict[str, Any]))
        if fields["event"] != _PACKET_JUDGED:
            gap = msgspec.convert(fields, _Gap, strict=False)
            return msgspec.json.encode({"event": fields["event"], **msgspec.to_builtins(gap)})
        return msgspec.json.encode(msgspec.convert(fields, _AsWritten, strict=False))

    def _is_other(self, line: bytes) -> bool:
        try:
            name = self._name.decode(line).event
            if name in _GAPS:
                self._count_gap(name, self._gap.decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False
        return name != _PACKET_JUDGED

    def _count_gap(self, name: str, gap: _Gap) -> None:
        number, fields = _GAPS[name]
        found = sum(getattr(gap, each) for each in fields)
        # Whole numbers stay so; seconds have three digits.
        setattr(self.unrecorded, number, round(getattr(self.unrecorded, number) + found, 3))

    def _skip(self) -> None:
        self.skipped += 1
        self.first_skipped = self.first_skipped or self.lines


def _of_one(text: str) -> str:
    for several, one in _OF_ONE.items():
        if text.startswith(several):
            return one + text.removeprefix(several)
    return text


def event_of(fields: Mapping[str, Any]) -> ReadEvent | None:
    """An event from its fields, as in `dump`; None if a daemon of another version wrote it."""
    try:
        event = msgspec.convert({"event": _PACKET_JUDGED, **fields}, _AsWritten)
        when = _checked(event)
        return ReadEvent(0, when, _first(event, when), event)
    except (msgspec.MsgspecError, ValueError, KeyError, OverflowError):
        return None


def _checked(event: PacketJudged) -> datetime:
    """Check constraints that the types do not express.

    Returns:
        The time of the event.

    Raises:
        ValueError: A string is not one of its values.
        KeyError: There is an address, but no family.
        OverflowError: The time cannot be expressed in UTC.
    """
    hook_number(event.hook)
    protocol_number(event.proto)
    for address in (event.src, event.dst):
        if address is not None and len(address_bytes(address)) != _ADDRESS_BYTES[event.family]:
            raise ValueError(f"expected an address of family {event.family}, found {address}")
    if event.tcp_flags is not None:
        tcp_flag_bits(event.tcp_flags)
    if event.state is not None:
        tcp_state_number(event.state)
    if event.breach is not None and event.breach.bound not in BOUNDS:
        raise ValueError(f"expected a bound, found {event.breach.bound}")
    distances = event.distances
    if distances is not None and (
        event.breach is None or sum(packets for _, packets in distances) != event.count
    ):
        raise ValueError("expected the distances of all packets")
    if event.caused_by is not None:
        time_of(event.caused_by.timestamp)
    return time_of(event.timestamp)


def _first(event: PacketJudged, when: datetime) -> datetime:
    """The time of the first packet of an event at `when`."""
    if event.first is None:
        return when
    first = time_of(event.first)
    if not 0 <= (when - first).total_seconds() <= _LONGEST_FOLD_S:
        raise ValueError(f"expected a time shortly before {event.timestamp}, found {event.first}")
    return first


def time_of(text: str) -> datetime:
    """A time of an event, in UTC.

    Raises:
        ValueError: It is not a plausible time of a host's clock.
        OverflowError: It cannot be expressed in UTC.
    """
    when = datetime.fromisoformat(text)
    if when.tzinfo is None or not _FIRST_YEAR <= when.year <= _LAST_YEAR:
        raise ValueError(f"expected a time in UTC, found {text}")
    return when.astimezone(UTC)
