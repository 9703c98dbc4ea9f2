# SPDX-License-Identifier: MIT
"""Renders events for systemd's journal, in its native protocol, which keeps fields apart.

Each event is one datagram of lines `KEY=value`. A value with line feeds is written as the key, a
line feed, the length as 64 bits in little-endian order, and the value.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import msgspec
from structlog.typing import EventDict, WrappedLogger

from nfq_guard.telemetry.console import Console
from nfq_guard.telemetry.events import Event, Level, PacketJudged, all_fields, name_of

SOCKET: Final = Path("/run/systemd/journal/socket")

# Message ids (journalctl MESSAGE_ID=...): random, and they must never change.
_MESSAGE_ID: Final = {
    "packet_judged": "f7dcd2909eaa463ea456a70aa5ccaab4",
    "started": "2b99cd1fae1b421186895681da0e939e",
    "stopped": "4f120bf72ac8437f9eb2e4e3f0dbbe7a",
    "judging_failed": "77db872f8df547318d75674fe35ba102",
    "kernel_dropped_packets": "8393a1d276d64af8a9a178a9ff5c2640",
    "reload_failed": "b497501137e84264a6a65ef417180929",
}
# Length of the time at the start of a console line; the journal has the time as a field.
_TIME: Final = 13
_PRIORITY: Final[dict[Level, str]] = {"error": "3", "warning": "4", "info": "6"}


def stdout_is_the_journal(descriptor: int = 1) -> bool:
    """Whether systemd connected the output to its journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not device.isdigit() or not inode.isdigit():
        return False
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (int(device), int(inode)) and SOCKET.exists()


@final
class JournalRenderer:
    """Renders one event as one datagram (a structlog processor)."""

    def __init__(self) -> None:
        self._message = Console(colour=False)

    def __call__(self, logger: WrappedLogger, name: str, event_dict: EventDict) -> bytes:
        """Render one event."""
        event: Event = event_dict["event"]
        kind = name_of(type(event))
        parts = [
            _field("MESSAGE", self._message(logger, name, event_dict).decode()[_TIME:]),
            _field("PRIORITY", _PRIORITY[event.level]),
            b"SYSLOG_IDENTIFIER=nfq-guard\n",
        ]
        if kind in _MESSAGE_ID:
            parts.append(_field("MESSAGE_ID", _MESSAGE_ID[kind]))
        for key, value in all_fields(event, event_dict["at"]).items():
            _flatten(f"NFQ_{key.upper()}", value, parts)
        return b"".join(parts)


def fields_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The event of an entry as `journalctl -o json` prints it, all values as texts.

    An entry that is not of the daemon has the name `""`.
    """
    event = {
        key.removeprefix("NFQ_").lower(): value
        for key, value in entry.items()
        if key.startswith("NFQ_")
    }
    if event.get("event") != name_of(PacketJudged):
        return event if "event" in event else {"event": ""}
    for name in ("breach", "shadow", "window", "caused_by"):
        parts = {
            key.removeprefix(f"{name}_"): event.pop(key)
            for key in tuple(event)
            if key.startswith(f"{name}_")
        }
        if parts:
            event[name] = parts
    pairs = event.get("distances")
    if pairs is not None:
        pairs = pairs if isinstance(pairs, list) else [pairs]
        event["distances"] = [str(pair).split(" ") for pair in pairs]
    # The renderer leaves null out; systemd, what is empty.
    for field in msgspec.structs.fields(PacketJudged):
        if field.required:
            event.setdefault(field.encode_name, "" if field.encode_name in {"in", "out"} else None)
    return event


def _flatten(key: str, value: Any, parts: list[bytes]) -> None:  # noqa: ANN401 - what JSON can hold
    """An object becomes one field for each of its keys, a list one field for each of its values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            word = "".join(letter if letter.isalnum() else "_" for letter in str(name).upper())
            _flatten(f"{key}_{word}", inner, parts)
    elif isinstance(value, list | tuple):
        for inner in value:
            # A pair in a list is one value.
            pair = isinstance(inner, list | tuple)
            _flatten(key, " ".join(map(str, inner)) if pair else inner, parts)
    elif value is not None:
        parts.append(_field(key, str(value)))


def _field(key: str, value: str) -> bytes:
    octets = value.encode("utf-8", "replace")
    if b"\n" in octets:
        return key.encode() + b"\n" + struct.pack("<Q", len(octets)) + octets + b"\n"
    return key.encode() + b"=" + octets + b"\n"
