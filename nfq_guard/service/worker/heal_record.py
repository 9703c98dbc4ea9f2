# SPDX-License-Identifier: MIT
"""A file with the healed flows, by which a daemon undoes the heals of a killed predecessor."""

import errno
import os
from pathlib import Path
from typing import Final, NamedTuple, Protocol, final

import msgspec

from nfq_guard import outfile
from nfq_guard.flow import Direction, FlowTuple

# Exceeds the number of heals that the settings allow, and bounds what is read from a foreign file.
_LINES_MAX: Final = 1 << 17
_LINE_BYTES: Final = 256
_ADDRESS_BYTES: Final = frozenset({4, 16})


class HealedEntry(NamedTuple):
    """One heal.

    Attributes:
        zone: Conntrack zone of the flow.
        wanted: The tuple by which the flow is found in that zone: of its original direction, or of
            its reply direction if only that one is in the zone.
        identity: `flows.liberal.LiberalFlow.identity`.
        directions: The directions whose senders were healed.
    """

    zone: int
    wanted: FlowTuple
    identity: bytes
    directions: frozenset[Direction]


class HealRecord(Protocol):
    """Keeps heals beyond the end of this process."""

    def take(self) -> list[HealedEntry]:
        """Remove and return the heals of earlier processes."""

    def add(self, entry: HealedEntry) -> None:
        """Add a heal."""

    def replace(self, entries: list[HealedEntry]) -> None:
        """Keep only these heals."""

    def close(self) -> None:
        """Close it."""


@final
class NoRecord:
    """A record that keeps nothing."""

    def take(self) -> list[HealedEntry]:
        """Nothing."""
        return []

    def add(self, entry: HealedEntry) -> None:
        """Do nothing."""

    def replace(self, entries: list[HealedEntry]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    zone: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    identity: bytes
    directions: tuple[Direction, ...]


_DECODER: Final = msgspec.json.Decoder(_Line)


@final
class HealFile:
    """JSON lines, appended before the flow is changed; methods raise OSError.

    The file exists from the first heal on. It is refused unless it is a regular file of this user
    with one name.
    """

    def __init__(self, path: Path) -> None:
        """Open the file only when it is needed."""
        self._path = path
        self._descriptor = -1

    def take(self) -> list[HealedEntry]:
        """As `HealRecord`; invalid lines are skipped."""
        try:
            self._open(0)
        except FileNotFoundError:
            return []
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            lines = file.read(_LINES_MAX * _LINE_BYTES).splitlines()
        found = [entry for line in lines if (entry := _entry(line)) is not None]
        os.ftruncate(self._descriptor, 0)
        return found

    def add(self, entry: HealedEntry) -> None:
        """As `HealRecord`."""
        self._open(os.O_CREAT)
        self._append(_line(entry))

    def replace(self, entries: list[HealedEntry]) -> None:
        """As `HealRecord`."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            self._append(b"".join(_line(entry) for entry in entries))

    def close(self) -> None:
        """Close the file, and remove it if it is empty."""
        if self._descriptor < 0:
            return
        if os.fstat(self._descriptor).st_size == 0:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def _append(self, lines: bytes) -> None:
        """Write whole lines: a full file system takes a part, and half a line records nothing."""
        before = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, lines)
        if written < len(lines):
            whole = lines.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._descriptor, before + whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _open(self, create: int) -> None:
        if self._descriptor >= 0:
            return
        flags = create | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o600)
        outfile.require_own(descriptor, self._path, {os.geteuid()})
        self._descriptor = descriptor


def _line(entry: HealedEntry) -> bytes:
    flow = entry.wanted
    line = _Line(
        entry.zone,
        flow.src,
        flow.dst,
        flow.sport,
        flow.dport,
        entry.identity,
        tuple(sorted(entry.directions)),
    )
    return msgspec.json.encode(line) + b"\n"


def _entry(line: bytes) -> HealedEntry | None:
    try:
        read = _DECODER.decode(line)
    except msgspec.DecodeError:
        return None
    ports = (read.zone, read.sport, read.dport)
    if (
        len(read.src) not in _ADDRESS_BYTES
        or len(read.src) != len(read.dst)
        or not all(0 <= number <= 0xFFFF for number in ports)
    ):
        return None
    wanted = FlowTuple(6, read.src, read.dst, read.sport, read.dport)
    return HealedEntry(read.zone, wanted, read.identity, frozenset(read.directions))
