# SPDX-License-Identifier: MIT
"""Packets that are judged but not recorded yet, where they outlive the process that judged them.

Each process that writes events has a page of shared memory: the daemon reads that of a worker that
was killed, and the next daemon those of a daemon that was killed. An orderly end leaves nothing.

The page of a worker also has what it judged since its last report, for the counts of the daemon.
That of the daemon has how many packets of the rules it has accounted for: rules that stay over a
restart go on counting, so the next daemon knows how many no queue took in between.

The pages of a daemon are in a file beside its control socket. Where it cannot have one, they are in
memory and serve for its workers alone.
"""

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self, final

import msgspec

from nfq_guard import outfile
from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Decision
from nfq_guard.service.control.protocol import connect
from nfq_guard.telemetry.events import Gap, PacketsUnrecorded
from nfq_guard.telemetry.log import EventLog

PAGE_BYTES: Final = 8192
# How the first page begins, and how it goes on in this format.
_MAGIC: Final = b"nfq_guard ledger "
_FORMAT: Final = b"4\n"
# Behind that, in which boot: the clock of another one began anew.
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# The clock of a time namespace differs from that of the host, and from that of the next one.
_TIME_OFFSETS: Final = Path("/proc/self/timens_offsets")
# How long a start waits for the workers of a daemon that was killed. They end by themselves.
_ENDED_WITHIN_S: Final = 1.5
_POLL_S: Final = 0.02
# For how long the next daemon believes that none other has judged packets of the same rules since.
_RESTARTED_WITHIN_S: Final = 60.0
# Words of a page, 8 bytes each. Then come the counts of the kinds of packets that the worker has
# not reported, one word each, the names of these kinds, and in the second half the held gaps.
_QUEUE: Final = 0
_UNRECORDED: Final = 1
_JUDGING: Final = 2
_PORT: Final = 3
_DROPS: Final = 4
_SEEN: Final = 5
_LENGTH: Final = 6
_REPORTED: Final = 7
_NAMES_LENGTH: Final = 8
_SHED: Final = 9
_UNJUDGED: Final = 10
# Each of these two plus one; 0 if it is unknown.
_UNNUMBERED: Final = 11
_NUMBERED: Final = 12
_ENDED: Final = 13
_WORDS: Final = struct.Struct("=14Q")
_COUNTS: Final = 14
_KINDS_MAX: Final = 64
_NAMES_AT: Final = 8 * (_COUNTS + _KINDS_MAX)
_TEXT_AT: Final = PAGE_BYTES // 2
_NAMES_MAX: Final = _TEXT_AT - _NAMES_AT
_TEXT_MAX: Final = PAGE_BYTES - _TEXT_AT
# No process leaves more: of packets without an event, ten million a second for a day; of packets
# that it is judging, a batch; of queues, those that there are; of port ids, 32 bits; of drops, two
# counters of 32 bits.
_MOST: Final = (1 << 16, 1 << 40, 1 << 10, (1 << 32) - 1, 1 << 33)


class Left(NamedTuple):
    """What a process that was killed left in its page.

    Attributes:
        queue: Its queue; None for a daemon that leaves the queues to workers.
        unrecorded: Packets that it had judged, and that neither had an event nor were counted by
            one.
        judging: Packets that it was judging: they may have a verdict.
        port_id: Netlink port id of its socket; 0 if unknown.
        drops: Packets dropped by the kernel through that socket, as far as events count them.
        seen_ms: When it last said that it serves, monotonic milliseconds of the initial time
            namespace; 0 if it did not.
        held: Events about missing packets that the recording does not have.
        shed: Packets above the rate at the rules, as far as the daemon had counted them.
        unjudged: Packets that were not judged, likewise.
        unnumbered: Packets that the rules had queued and that no queue had numbered or dropped when
            the daemon last compared them; None if unknown.
        numbered: Packets numbered or dropped by the queues that were unbound since; None if
            unknown.
        ended_ms: When the daemon ended in order, as `seen_ms`; 0 if it did not.
    """

    queue: int | None
    unrecorded: int
    judging: int
    port_id: int
    drops: int
    seen_ms: int
    held: list[Gap]
    shed: int = 0
    unjudged: int = 0
    unnumbered: int | None = None
    numbered: int | None = None
    ended_ms: int = 0

    @property
    def accounted(self) -> int | None:
        """Packets of the rules of which the daemon knows what became of them; None if unknown.

        Without those in queues that are still bound.
        """
        if self.unnumbered is None or self.numbered is None:
            return None
        return self.unnumbered + self.numbered

    @property
    def counts(self) -> bool:
        """Whether any packet is missing."""
        return bool(self.unrecorded or self.judging or self.held)


class Unreported(NamedTuple):
    """What a worker had judged since its last report.

    Attributes:
        reported: Packets that it had reported then, since it began.
        packets: Packets since, by reason, action and rule; those of more kinds than a page has room
            for are missing.
    """

    reported: int
    packets: dict[tuple[str, str, str], int]


@final
class Page:
    """The page of one process, which alone writes it."""

    def __init__(self, memory: memoryview | bytearray, queue: int | None = None) -> None:
        """Begin an empty page of `PAGE_BYTES` in `memory`."""
        self._memory = memoryview(memory)
        self._words = self._memory[:_NAMES_AT].cast("Q")
        self._names = self._memory[_NAMES_AT:_TEXT_AT]
        self._text = self._memory[_TEXT_AT:]
        # The kinds of packets that the page has, by identity: hashing an enum costs more.
        self._places: dict[tuple[int, int], int] = {}
        # A decision must live as long as its identity is used.
        self._decisions: list[Decision] = []
        self._words[_QUEUE] = 0 if queue is None else queue + 1
        self.clear()

    def judging(self, packets: int) -> None:
        """Say that this number of packets is being judged."""
        self._words[_JUDGING] = packets

    def judged(self, unrecorded: int) -> None:
        """Say how many packets neither have an event nor are counted by one, and none is judged."""
        self._words[_UNRECORDED] = unrecorded
        self._words[_JUDGING] = 0

    def add(self, reason: Reason, decision: Decision, packets: int) -> None:
        """Count packets that the worker has judged and not reported."""
        place = self._places.get((id(reason), id(decision)), -1)
        if place < 0:
            place = self._place(reason, decision)
        if place >= 0:
            self._words[_COUNTS + place] += packets

    def reported(self, packets: int) -> None:
        """Say that the worker has reported all that it judged, this number of packets."""
        if self._places:
            self._words[_NAMES_LENGTH] = 0
            self._places.clear()
            self._decisions.clear()
        self._words[_REPORTED] = packets

    def unreported(self) -> Unreported:
        """What the worker has judged since its last report."""
        names = bytes(self._names[: self._words[_NAMES_LENGTH]]).splitlines()
        found: dict[tuple[str, str, str], int] = {}
        for place, line in enumerate(names):
            kind = msgspec.json.decode(line, type=tuple[str, str, str])
            found[kind] = found.get(kind, 0) + self._words[_COUNTS + place]
        return Unreported(self._words[_REPORTED], found)

    def dropped(self, port_id: int, drops: int) -> None:
        """Say how many packets the kernel dropped through this socket, as events count them."""
        self._words[_PORT] = port_id
        self._words[_DROPS] = drops

    def resume(self, left: Left) -> None:
        """Say what an earlier process of this queue left, until this one has stated it."""
        self._words[_UNRECORDED] = left.unrecorded
        self._words[_JUDGING] = left.judging
        self.dropped(left.port_id, left.drops)

    def counted(self, shed: int, unjudged: int) -> None:
        """Say how far the daemon has counted the packets at the rules, which outlive it."""
        self._words[_SHED] = shed
        self._words[_UNJUDGED] = unjudged

    def unnumbered(self, packets: int | None) -> None:
        """Say how many packets of the rules no queue has numbered or dropped; None if unknown."""
        known = packets is not None and packets >= 0
        self._words[_UNNUMBERED] = packets + 1 if packets is not None and known else 0
        self._words[_NUMBERED] = 1 if known else 0

    def numbered(self, packets: int | None) -> None:
        """Add packets that a queue had numbered or dropped when it was unbound; None if unknown."""
        if packets is None:
            self.unnumbered(None)
        else:
            self._words[_NUMBERED] = max(self._words[_NUMBERED], 1) + packets

    def still_bound(self) -> None:
        """Say that the queue of the process before was not unbound."""
        self._words[_NUMBERED] = min(self._words[_NUMBERED], 1)

    def ended(self, now: float) -> None:
        """Say that the daemon ends in order at `now`, as `serving`."""
        self._words[_ENDED] = int(now * 1000)

    def serving(self, now: float) -> None:
        """Say that the daemon serves at `now`, monotonic seconds of the initial time namespace."""
        self._words[_SEEN] = int(now * 1000)

    def hold(self, gaps: Sequence[Gap]) -> bool:
        """Keep these events, in place of those before. False if they are too many for the page."""
        octets = msgspec.json.encode(gaps) if gaps else b""
        self._words[_LENGTH] = 0  # a process that is killed here leaves none
        if len(octets) > _TEXT_MAX:
            return False
        self._text[: len(octets)] = octets
        self._words[_LENGTH] = len(octets)
        return True

    def left(self) -> Left:
        """What the page has."""
        return left_in(bytes(self._memory))

    def clear(self) -> None:
        """Forget all but the queue."""
        for word in range(_QUEUE + 1, _COUNTS):
            self._words[word] = 0

    def _place(self, reason: Reason, decision: Decision) -> int:
        """A place for the count of a kind of packets; negative if there is no room."""
        place = len(self._places)
        kind = (reason.value, decision.action.value, decision.rule)
        line = msgspec.json.encode(kind) + b"\n"
        begin = self._words[_NAMES_LENGTH]
        if place == _KINDS_MAX or begin + len(line) > _NAMES_MAX:
            return -1
        self._names[begin : begin + len(line)] = line
        self._words[_COUNTS + place] = 0
        self._words[_NAMES_LENGTH] = begin + len(line)
        self._places[id(reason), id(decision)] = place
        self._decisions.append(decision)
        return place


@final
class Ledger:
    """The pages of one daemon.

    Attributes:
        left: What an earlier daemon left that was killed.
        counted: How far it had counted the packets above the rate and those not judged.
    """

    def __init__(self, queues: Sequence[int | None], beside: Path | None, notes: list[str]) -> None:
        """Read what an earlier daemon left. It stays in the file until `begin`.

        Args:
            queues: The queue of each page; None for that of a daemon that leaves them to workers.
            beside: The path of the control socket; None without one.
            notes: Takes a line if the pages do not outlive the daemon although they should.
        """
        self.left: list[Left] = []
        self._queues = queues
        self._notes = notes
        self._header = _header()
        self._ahead_s = clock_ahead_s(_TIME_OFFSETS)
        self._path: Path | None = None
        self._fd = -1
        self._pages: dict[int | None, Page] = {}
        if beside is not None and beside.parent.is_dir():
            path = beside.with_name(f"{beside.name}.ledger")
            try:
                if _removed(path):
                    notes.append(
                        f"{path} was that of a daemon of another user and is removed: what that "
                        "daemon had not recorded when it was killed is unknown"
                    )
                self._read(path, beside)
            except BlockingIOError:
                # That of another daemon, which has the control socket as well, needs no words.
                if not _listens(beside):
                    self._complain(path, OSError(errno.EBUSY, "another process has it"))
            except OSError as error:
                self._complain(path, error)
        self._seen_s = max((left.seen_ms for left in self.left), default=0) / 1000
        self.counted = (
            max((left.shed for left in self.left), default=0),
            max((left.unjudged for left in self.left), default=0),
        )
        self._before = self._ended_before(time.monotonic() - self._ahead_s)

    def begin(self) -> None:
        """Begin empty pages; what an earlier daemon left is to be stated now."""
        size = (1 + len(self._queues)) * PAGE_BYTES
        memory = mmap.mmap(-1, size)
        if self._path is not None:
            try:
                memory = self._mapped(size)
            except OSError as error:
                self._complain(self._path, error)
                os.close(self._fd)
                self._path = None
        octets = memoryview(memory)
        self._pages = {
            queue: Page(octets[at : at + PAGE_BYTES], queue)
            for at, queue in zip(range(PAGE_BYTES, size, PAGE_BYTES), self._queues, strict=True)
        }
        # Should this one end before it serves.
        self.page_of_daemon.serving(self._seen_s)
        shed, unjudged = self.counted
        self.page_of_daemon.counted(shed, unjudged)
        if self._before is not None:
            self.page_of_daemon.unnumbered(self._before.unnumbered)
            self.page_of_daemon.numbered(self._before.numbered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def page_of_daemon(self) -> Page:
        """The page of the daemon's own process."""
        return next(iter(self._pages.values()))

    def page(self, queue: int | None) -> Page:
        """The page of a queue, or that of the daemon itself."""
        return self._pages[queue]

    def left_by(self, queue: int) -> Left | None:
        """What an earlier process of this queue left; None for nothing."""
        return next((left for left in self.left if left.queue == queue), None)

    def serving(self, now: float) -> None:
        """Say that the daemon serves at `now`, monotonic seconds."""
        self.page_of_daemon.serving(now - self._ahead_s)

    @property
    def accounted(self) -> int | None:
        """Packets of the rules that an earlier daemon has accounted for; None if unknown.

        Without those in a queue that was taken over.
        """
        return self.page_of_daemon.left().accounted

    def since_end_s(self, now: float) -> float | None:
        """Since when at `now`, monotonic seconds, an earlier daemon has ended in order.

        None if none did shortly before the start of this one.
        """
        if self._before is None:
            return None
        return round(now - self._ahead_s - self._before.ended_ms / 1000, 3)

    def unserved_s(self, now: float) -> float | None:
        """For how long no daemon has served at `now`, monotonic seconds.

        At most a second too long. None if no earlier daemon was killed, or it did not serve.
        """
        now -= self._ahead_s
        return round(now - self._seen_s, 3) if 0 < self._seen_s <= now else None

    def close(self) -> None:
        """Remove the file, unless it has something for the next daemon."""
        if self._path is not None:
            if not self._counts():
                with suppress(OSError):
                    self._path.unlink()
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping has a copy of the descriptor
            os.close(self._fd)
            self._path = None

    def _counts(self) -> bool:
        """Whether the next daemon needs the file.

        Packets are missing, this daemon ends without having served after a kill, or it leaves rules
        with packets that it has counted.
        """
        if not self._pages:
            return bool(self.left)
        ours = self.page_of_daemon.left()
        unserved = 0 < ours.seen_ms == int(self._seen_s * 1000)
        if not unserved:
            self.page_of_daemon.serving(0)  # this is no kill
            self.page_of_daemon.ended(time.monotonic() - self._ahead_s)
        at_rules = bool(ours.shed or ours.unjudged or ours.accounted is not None)
        return unserved or at_rules or any(page.left().counts for page in self._pages.values())

    def _ended_before(self, now: float) -> Left | None:
        """What a daemon left that ended in order shortly before `now`; None if none did."""
        for left in self.left:
            if 0 < left.ended_ms <= now * 1000 < left.ended_ms + _RESTARTED_WITHIN_S * 1000:
                return left
        return None

    def _complain(self, path: Path, error: OSError) -> None:
        self._notes.append(
            f"{path} cannot be used, {error.strerror}: what this daemon has not recorded "
            "is unknown if it is killed"
        )

    def _read(self, path: Path, beside: Path) -> None:
        """Take the file, with what it has in `left`.

        Raises:
            BlockingIOError: Another daemon has it, or workers of one that was killed.
            OSError: It cannot be used.
        """
        self._fd = _locked(path, beside)
        try:
            octets = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
            if octets and not octets.startswith(_MAGIC):
                raise FileExistsError(errno.EEXIST, "it is no ledger")
        except OSError:
            os.close(self._fd)
            raise
        if octets.startswith(_MAGIC + _FORMAT):
            same_boot = octets.startswith(self._header)
            for at in range(PAGE_BYTES, len(octets), PAGE_BYTES):
                left = left_in(octets[at : at + PAGE_BYTES])
                if not same_boot:
                    left = left._replace(
                        port_id=0, seen_ms=0, shed=0, unjudged=0, unnumbered=None, ended_ms=0
                    )
                self.left.append(left)
        self._path = path

    def _mapped(self, size: int) -> mmap.mmap:
        """Empty the file, and map it.

        Raises:
            OSError: There is no room for it.
        """
        os.ftruncate(self._fd, 0)
        # Written to a page without memory behind it, a process would be killed.
        os.posix_fallocate(self._fd, 0, size)
        memory = mmap.mmap(self._fd, size)
        memory[: len(self._header)] = self._header
        return memory


def _header() -> bytes:
    """How the file of a daemon of this boot begins."""
    try:
        boot = _BOOT_ID.read_bytes()
    except OSError:
        boot = b""
    return _MAGIC + _FORMAT + boot


def clock_ahead_s(offsets: Path) -> float:
    """By how much the monotonic clock is ahead of that of the initial time namespace.

    Args:
        offsets: The kernel's file with the offsets of this time namespace.
    """
    try:
        lines = offsets.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0  # a kernel without time namespaces
    for line in lines:
        words = line.split()
        if words[0] == "monotonic":
            return int(words[1]) + int(words[2]) / 1e9
    return 0.0


def hold_left(left: Left, events: EventLog) -> None:
    """Hold the events that a killed process held."""
    for gap in left.held:
        events.hold(gap)


def state_left(left: Left, events: EventLog) -> None:
    """Log what a process did not record before it was killed."""
    hold_left(left, events)
    packets = left.unrecorded + left.judging
    if packets and left.queue is not None:
        events.emit(PacketsUnrecorded(queue=left.queue, packets=packets))


def left_in(octets: bytes) -> Left:
    """What a page has; nothing if it is damaged."""
    if len(octets) != PAGE_BYTES:
        return Left(None, 0, 0, 0, 0, 0, [])
    words = _WORDS.unpack_from(octets)
    queue, unrecorded, judging, port_id, drops, seen_ms, length, *_ = words
    found = queue, unrecorded, judging, port_id, drops
    if any(number > most for number, most in zip(found, _MOST, strict=True)):
        return Left(None, 0, 0, 0, 0, 0, [])
    held: list[Gap] = []
    # Octets that are not UTF-8 are a ValueError.
    with suppress(msgspec.DecodeError, ValueError, RecursionError):
        if length:
            held = msgspec.json.decode(octets[_TEXT_AT:][:length], type=list[Gap])
    queue_num = None if queue == 0 else queue - 1
    shed, unjudged = words[_SHED], words[_UNJUDGED]
    unnumbered, numbered = (
        None if words[word] == 0 else words[word] - 1 for word in (_UNNUMBERED, _NUMBERED)
    )
    return Left(
        queue_num,
        unrecorded,
        judging,
        port_id,
        drops,
        seen_ms,
        held,
        shed,
        unjudged,
        unnumbered,
        numbered,
        words[_ENDED],
    )


def _locked(path: Path, beside: Path) -> int:
    """Open the file, or create it, and lock it.

    The workers of a daemon that was killed have the lock until they end, and may still write to
    their pages. They are waited for, unless a daemon listens at `beside`.

    Raises:
        BlockingIOError: Another process keeps the lock.
        OSError: The file cannot be used.
    """
    deadline = time.monotonic() + _ENDED_WITHIN_S
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            blocked = isinstance(error, BlockingIOError)
            if not blocked or _listens(beside) or time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)
        else:
            # Another daemon may have removed it since it was opened.
            if os.fstat(fd).st_nlink or time.monotonic() >= deadline:
                return fd
            os.close(fd)


def _listens(control_socket: Path) -> bool:
    """Whether a process listens there."""
    try:
        connect(control_socket, 0.0).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _removed(path: Path) -> bool:
    """Remove a file that a daemon of another user left where only this user makes files.

    Returns whether it had anything; this user could not read it.
    """
    with suppress(OSError):
        ours = os.geteuid()
        found = path.lstat()
        if path.parent.stat().st_uid == ours != found.st_uid:
            path.unlink()
            return found.st_size > 0
    return False


def _open(path: Path) -> int:
    """Open the file, or create it.

    Raises:
        OSError: It cannot be opened, or another user could have planted it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    outfile.require_own(fd, path, {os.geteuid()})
    return fd
