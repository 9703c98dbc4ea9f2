# SPDX-License-Identifier: MIT
"""Writes events by structlog to every output of the log, each in the format of its renderer.

An output that blocks, fails or is gone loses only its own lines: the oldest of its bounded ring
(`telemetry.sink`). The number of lost lines is logged at most once a minute.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, Final, NamedTuple, cast, final

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nfq_guard.telemetry.event_json import json_octets
from nfq_guard.telemetry.events import (
    AllowedUnrecorded,
    Event,
    EventsSuppressed,
    Gap,
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
    own_fields,
    timestamp,
)
from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink

# Minimum time between two events about lost lines, seconds.
_LOST_S: Final = 60.0
# Minimum time between two lines about missing packets in the file of events, seconds.
_GAPS_S: Final = 60.0
# The numbers of each `Gap` since the last one of its class.
_SINCE_LAST: Final[dict[type[Event], tuple[str, ...]]] = {
    KernelDroppedPackets: ("since_last",),
    KernelPassedPackets: ("since_last",),
    PacketsUnserved: ("packets",),
    PacketsShed: ("packets",),
    PacketsUnjudged: ("unread", "failed"),
    Offloaded: ("offloaded_flows", "offload_drops", "offload_refused", "offload_full"),
}
# Events about missing packets that are rare.
_RARE: Final = (
    EventsSuppressed,
    AllowedUnrecorded,
    PacketsUnrecorded,
    UnservedTime,
    LogLinesDropped,
)
_FOLLOW_S: Final = 1.0


def json_line(_logger: WrappedLogger, _name: str, event_dict: EventDict) -> bytes:
    """Render one event as JSON (a structlog processor)."""
    return json_octets(event_dict["event"], event_dict["at"])


class Output(NamedTuple):
    """One output of the log.

    Attributes:
        sink: Writes the lines.
        render: Renders an event: `json_line`, `eve.eve_line`, a `Console` or a `JournalRenderer`.
        name: As in the setting `log`.
        prefix: Precedes each line of a worker, and identifies the output of the daemon that the
            line is for.
    """

    sink: LineSink
    render: Processor = json_line
    name: str = "-"
    prefix: bytes = b""


@final
class _Prefixed:
    """The part of a file that structlog uses; adds a prefix to each line."""

    def __init__(self, sink: LineSink, prefix: bytes) -> None:
        self._sink = sink
        self._prefix = prefix

    def write(self, line: bytes) -> int:
        return self._sink.write(self._prefix + line)

    def flush(self) -> None:
        """Do nothing; `EventLog.push` writes."""


@final
class EventLog:
    """Writes events into sinks; `push` writes them to the files.

    Attributes:
        outputs: The outputs of events.
        last_error: The last event of level error: its time as `at`, its name as `event`, and its
            fields. None before the first.
        recording: Takes the events of packets instead of the outputs, and the events that count
            missing ones; None without an events file.
        keep: Gets the events that are held for the recording, whenever they change, and keeps them
            for the case that this process is killed. False if it has no room: they are written.
    """

    def __init__(
        self,
        to: LineSink | Sequence[Output],
        recording: Recording | None = None,
        recorded: Callable[[Event], bytes] = json_octets,
    ) -> None:
        """Write to `to`; a single sink gets JSON.

        Args:
            to: The outputs.
            recording: The file of events.
            recorded: Renders an event for `recording`.
        """
        self.outputs: tuple[Output, ...] = (Output(to),) if isinstance(to, LineSink) else tuple(to)
        self.last_error: dict[str, object] | None = None
        self.recording = recording
        self._recorded = recorded
        self._sinks = tuple(dict.fromkeys(output.sink for output in self.outputs))
        self.keep: Callable[[list[Gap]], bool] | None = None
        self._gaps: dict[tuple[type[Gap], int | None], Gap] = {}
        self._gaps_at = float("-inf")
        self._lost_logged = 0
        self._lost_at = float("-inf")
        self._follow_at = float("-inf")
        # BytesLogger uses only `write` and `flush` of the file.
        self._loggers = [
            structlog.wrap_logger(
                structlog.BytesLogger(cast("BinaryIO", _file_of(output))),
                processors=[output.render],
                wrapper_class=structlog.BoundLoggerBase,
            ).bind()
            for output in self.outputs
        ]

    @property
    def dropped(self) -> int:
        """Number of lost lines."""
        return sum(sink.dropped for sink in self._all)

    @property
    def errors(self) -> int:
        """Number of failed writes."""
        return sum(sink.errors for sink in self._all)

    @property
    def _all(self) -> tuple[LineSink, ...]:
        recording = self.recording
        return self._sinks if recording is None else (*self._sinks, recording.sink)

    def emit(self, event: Event) -> None:
        """Write one event.

        Events of packets wait for `push`; events of the daemon itself are written at once.
        """
        at = timestamp()
        if event.level == "error":
            self.last_error = {
                "at": at,
                "event": name_of(type(event)),
                **own_fields(event),
            }
        if self.recording is not None:
            if isinstance(event, PacketJudged):
                self.recording.write_packets(self._recorded(event), event.count)
                return
            if isinstance(event, _RARE):
                self.recording.write_gap(self._recorded(event))
                # At once: nothing else has the number any more, should a kill follow.
                self.recording.push(time.monotonic())
            elif isinstance(event, Gap):
                self.hold(event)
        for logger in self._loggers:
            # The wrapper's way to find a method of the wrapped logger.
            logger._proxy_to_logger(event.level, cast("str", event), at=at)  # noqa: SLF001 - for wrappers' use
        if not isinstance(event, PacketJudged):
            now = time.monotonic()
            for sink in self._sinks:
                sink.push(now)

    def for_worker(self, sink: LineSink) -> "EventLog":
        """The log of a worker process, called in it; `sink` carries lines to `write_of_worker`."""
        if self.recording is not None:
            self.recording.sink.forked()
        outputs = [
            output._replace(sink=sink, prefix=bytes((place,)))
            for place, output in enumerate(self.outputs)
        ]
        return EventLog(outputs, self.recording, self._recorded)

    def write_of_worker(self, line: bytes) -> bool:
        """Write a line of a worker to its output. False if there is no such output."""
        place = line[0]
        if place >= len(self.outputs):
            return False
        self.outputs[place].sink.write(line[1:])
        return True

    def begin_waiting_elsewhere(self, soon: Callable[[Callable[[], None]], None]) -> None:
        """From now on have threads wait for the file systems of files.

        Called in the process that writes, once privileges were given up.

        Args:
            soon: Has the loop make a call, from any thread, as `Loop.soon`.
        """
        for sink in self._all:
            sink.begin_waiting_elsewhere(partial(soon, self._push_late))

    def _push_late(self) -> None:
        self.push(time.monotonic())

    def push(self, now: float) -> None:
        """Write queued lines, as far as possible without blocking.

        Once a second, reopen a file that was renamed or removed.

        Args:
            now: Monotonic seconds.
        """
        for sink in self._sinks:
            sink.push(now)
        if now >= self._follow_at:
            self._follow_at = now + _FOLLOW_S
            for sink in self._sinks:
                sink.follow()
        if self.recording is not None:
            if self._gaps and now >= self._gaps_at:
                self._gaps_at = now + _GAPS_S
                self.write_held()
            self.recording.push(now)

    def log_lost(self, now: float, *, ending: bool = False) -> None:
        """Log the number of lost lines, at most once a minute, once any output accepts lines.

        Args:
            now: Monotonic seconds.
            ending: Whether there is no later time for it.
        """
        sinks = self._all
        if ending:
            for sink in sinks:
                sink.give_up(now)
        dropped = self.dropped
        if dropped == self._lost_logged or (now < self._lost_at and not ending):
            return
        if all(sink.waiting for sink in sinks) and not ending:
            return
        self._lost_at = now + _LOST_S
        last_error = next((sink.last_error for sink in sinks if sink.last_error), "")
        lines = dropped - self._lost_logged
        self._lost_logged = dropped
        self.emit(LogLinesDropped(lines=lines, last_error=last_error))

    def reopen(self) -> None:
        """Reopen the files by name, after a rotation."""
        for sink in self._sinks:
            sink.reopen()

    def write_held(self) -> None:
        """Write the events that are held for the recording now."""
        if self.recording is not None:
            for event in self._gaps.values():
                self.recording.write_gap(self._recorded(event))
        self._gaps.clear()
        if self.keep is not None:
            self.keep([])

    def hold(self, event: Gap) -> None:
        """Hold an event for the recording, with the numbers of those before it.

        A recording takes lines about missing packets also at its maximum size, and therefore few.
        Without a recording, do nothing.
        """
        if self.recording is None:
            return
        kind = type(event)
        key = kind, getattr(event, "queue", None)
        held = self._gaps.get(key)
        if held is not None:
            sums = {name: getattr(held, name) + getattr(event, name) for name in _SINCE_LAST[kind]}
            event = msgspec.structs.replace(event, **sums)
        self._gaps[key] = event
        if self.keep is not None and not self.keep(list(self._gaps.values())):
            self.write_held()

    def close(self, now: float) -> None:
        """Write as much as possible, and close all outputs."""
        self.write_held()
        for sink in self._all:
            sink.close(now)


def _file_of(output: Output) -> LineSink | _Prefixed:
    return _Prefixed(output.sink, output.prefix) if output.prefix else output.sink
