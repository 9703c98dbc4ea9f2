# SPDX-License-Identifier: MIT
"""Writes events by structlog: one JSON object a line, unless another renderer is given."""

from typing import BinaryIO, Final, cast, final

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nfq_guard.telemetry.events import (
    AllowedUnrecorded,
    Event,
    EventsSuppressed,
    LogLinesDropped,
    PacketJudged,
    all_fields,
    name_of,
    own_fields,
    timestamp,
)
from nfq_guard.telemetry.recording import Recording
from nfq_guard.telemetry.sink import LineSink

_encode: Final = msgspec.json.Encoder().encode
_TAG_OF_A_PACKET: Final = b'{"event":"packet_judged",'


@final
class EventLog:
    """Writes events into a sink; `LineSink.push` writes them to the file.

    Attributes:
        last_error: The last event of level error: its time as `at`, its name as `event`, and its
            fields. None while there was none.
        recording: Takes the events of packets instead of the sink, and what says how many are
            missing besides the sink; None without a file of events.
    """

    def __init__(
        self,
        sink: LineSink,
        render: Processor | None = None,
        recording: Recording | None = None,
    ) -> None:
        """Render by `Console`, by `JournalRenderer`, or, by default, as JSON."""
        self.last_error: dict[str, object] | None = None
        self.recording = recording
        # BytesLogger uses the file's write and flush, and nothing else of it.
        self._logger = structlog.wrap_logger(
            structlog.BytesLogger(cast("BinaryIO", sink)),
            processors=[render or json_line],
            wrapper_class=structlog.BoundLoggerBase,
        ).bind()

    def emit(self, event: Event) -> None:
        """Write one event."""
        if event.level == "error":
            self.last_error = {
                "at": timestamp(),
                "event": name_of(type(event)),
                **own_fields(event),
            }
        if self.recording is not None:
            if isinstance(event, PacketJudged):
                self.recording.write_packets(_encode(event), event.count)
                return
            if isinstance(event, EventsSuppressed | AllowedUnrecorded | LogLinesDropped):
                self.recording.write_gap(_encode(all_fields(event)))
        # How the wrapper finds a method of the logger that it wraps.
        self._logger._proxy_to_logger(event.level, cast("str", event))  # noqa: SLF001 - for wrappers' use


def json_line(_logger: WrappedLogger, _name: str, event_dict: EventDict) -> bytes:
    """Render one event as JSON (a structlog processor)."""
    event = event_dict["event"]
    if isinstance(event, PacketJudged):
        return _encode(event)
    return _encode(all_fields(event))


def json_fields(event: PacketJudged) -> bytes:
    """The fields of an event as a JSON object, without `event`."""
    return b"{" + _encode(event)[len(_TAG_OF_A_PACKET) :]
