# SPDX-License-Identifier: MIT
"""Renders events for systemd's journal, in its native protocol, which keeps fields apart.

Each event is one datagram of lines `KEY=value`. A value with line feeds is written as the key, a
line feed, the length as 64 bits in little-endian order, and the value.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import msgspec

from nfq_guard.telemetry.console import Console
from nfq_guard.telemetry.events import Event, Level, PacketJudged, all_fields, name_of

if TYPE_CHECKING:  # commands that read events need no structlog, a quarter of their start
    from structlog.typing import EventDict, WrappedLogger

SOCKET: Final = Path("/run/systemd/journal/socket")

# Message ids (journalctl MESSAGE_ID=...): random, and must never change. `journalctl -x` shows the
# catalogue text of each.
MESSAGE_IDS: Final = {
    "packet_judged": "f7dcd2909eaa463ea456a70aa5ccaab4",
    "started": "2b99cd1fae1b421186895681da0e939e",
    "evidence_changed": "0757ed813499fc174bdbb9feffc63636",
    "stopped": "4f120bf72ac8437f9eb2e4e3f0dbbe7a",
    "counters": "443f38ee16b545b00041cc79b8806ae5",
    "daemon_failed": "f70802ac36895ec622bf83f5ec4d8fa9",
    "config_refused": "cace1e9ea27c7fdc0e164dcf8300582c",
    "note": "d1d2ef76a38d88db73a1e78690c7d943",
    "host_accepts": "877bd2121139455c978e41e1000cdbd3",
    "host_takes": "0b23335601ef9b0e7d07d4e7d9ced1e0",
    "mode_changed": "af9133f5f2089a6a311dacc8c2e9cc63",
    "rules_installed": "3f56871024dcc57267468aa18b15e79b",
    "rules_removed": "ae63d15c8701f867d538c455fc489c06",
    "rules_changed": "1c7b0708ebed39834efeea08c7ad715d",
    "rules_contested": "7fc6b298f4850422568e27ee24ee068f",
    "rules_restored": "8ae2d0ccc1ad2ad59419712daf0c7e6d",
    "rules_check_failed": "62250056a880046d998e37b9d753963f",
    "half_hidden": "4974746723af406baa9b6980d0d304cc",
    "half_hidden_over": "13562c566b06457bbd3e0b6e4a763339",
    "rules_left_behind": "a19c0e702dd1cc24b517e564c9333406",
    "reloaded": "2eff16abb6dd96ed9d9542ce0d0c7397",
    "reload_failed": "b497501137e84264a6a65ef417180929",
    "reload_crashed": "7f25a0d81128601eb8776351b2600296",
    "control_socket_restored": "78d7f898342c74ab46557ee9e02d1f9b",
    "metrics_file_failed": "421411a5e7dc6d1249920eb3dfa9ee37",
    "worker_failed": "c6e14a6a29e2021624a6de9427dfe54e",
    "worker_ended": "c05653fa4ac60369d718276ff7747d19",
    "worker_stuck": "b60ac5d03b2251a412ea70bf875f6ebc",
    "worker_killed": "3b24b9ed2f4d2372ae795fd212b47689",
    "worker_left_behind": "f7cb3fd1ebf08ab0908b094412942af1",
    "worker_restarted": "d20917682fa3fbf989407e4b04e3a0e4",
    "worker_restart_failed": "e9f20ec629bbed1b1a7330e569aed8fb",
    "message_refused": "b2b298d6aa4d4f584aa2f78d44f7dc18",
    "supervision_failed": "4a4eb35f5efddd9bdd79b44f7b41ce89",
    "housekeeping_failed": "cecb0480f7418812e7198161b4811cf6",
    "judging_failed": "77db872f8df547318d75674fe35ba102",
    "event_failed": "fde2c288141df277854def59f181c2a4",
    "kernel_dropped_packets": "8393a1d276d64af8a9a178a9ff5c2640",
    "kernel_passed_packets": "22e39f1fe3c1405fa8c8a4ba40d662bb",
    "packets_unserved": "b8f5ccbdd14b4243995836cf805f191f",
    "packets_shed": "8bc8ae73b97c4750819da34a0f127031",
    "packets_unjudged": "14688610895840129b7cb0ce79e80edd",
    "lookups_failed": "80de6f2323024fec510153bde0228b4b",
    "events_suppressed": "7effa206802f1aeffa54aace8336973f",
    "allowed_unrecorded": "496831350f4c76715414e41d6f6e91f8",
    "packets_unrecorded": "9f263a392d58419787239c74f88f147a",
    "unserved_time": "619b39fa549342ffb13288c8bf74941f",
    "log_lines_dropped": "68f1f638bdd8a30d74e5442db66729f2",
    "pods_unread": "c593295070de43558724fcf2a9f3dcd0",
    "offload_failed": "31ab9ae1c84bd94ba9d79da364fc8a75",
    "offloaded": "409c0124574c0d7b078cdcfc38bb0c53",
    "packets_saved": "2273a39974316d3580157893cd2a30c3",
    "packets_not_saved": "aebc1e759654621cf96b7c2d3b6f8e4f",
    "heal_failed": "94fd0f4a806546528ec2fe7b610c7c80",
    "healed": "87bfd6534f024541ae0ebfd027f8ec0c",
    "stopped_under_load": "5bab1402d8d3706b6deaf908111a9def",
}
# Length of the timestamp at the start of a console line; in the journal it is a field.
_TIME: Final = 24
# Packets by name. The name of a rule may be too long for that of a field, or the same as another's
# without punctuation.
_COUNTS: Final = frozenset({"NFQ_REASONS", "NFQ_ACTIONS", "NFQ_RULES"})
_PRIORITY: Final[dict[Level, str]] = {"error": "3", "warning": "4", "info": "6"}


def stdout_is_the_journal(descriptor: int = 1) -> bool:
    """Whether systemd connected the output to its journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not device.isdecimal() or not inode.isdecimal():
        return False
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (int(device), int(inode)) and SOCKET.exists()


@final
class JournalRenderer:
    """Renders one event as one datagram (a structlog processor)."""

    def __init__(self) -> None:
        self._message = Console(colour=False)

    def __call__(self, logger: "WrappedLogger", name: str, event_dict: "EventDict") -> bytes:
        """Render one event."""
        event: Event = event_dict["event"]
        kind = name_of(type(event))
        parts = [
            _field("MESSAGE", self._message(logger, name, event_dict).decode()[_TIME:]),
            _field("PRIORITY", _PRIORITY[event.level]),
            _field("MESSAGE_ID", MESSAGE_IDS[kind]),
            b"SYSLOG_IDENTIFIER=nfq-guard\n",
        ]
        for key, value in all_fields(event, event_dict["at"]).items():
            _flatten(f"NFQ_{key.upper()}", value, parts)
        return b"".join(parts)


def fields_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The event of an entry as `journalctl -o json` prints it; all values are strings.

    An entry that is not of the daemon has the name `""`.
    """
    event = {
        key.removeprefix("NFQ_").lower(): value
        for key, value in entry.items()
        if key.startswith("NFQ_")
    }
    if event.get("event") != name_of(PacketJudged):
        return event if "event" in event else {"event": ""}
    for name in ("breach", "shadow", "window", "caused_by", "src_pod", "dst_pod"):
        parts = {
            key.removeprefix(f"{name}_"): event.pop(key)
            for key in tuple(event)
            if key.startswith(f"{name}_")
        }
        if parts:
            event[name] = parts
    # A list of one value is a single field; an empty list leaves none.
    status = event.get("status")
    if isinstance(status, str) and not status.isdigit():
        event["status"] = [status]
    pairs = event.get("distances")
    if pairs is not None:
        pairs = pairs if isinstance(pairs, list) else [pairs]
        event["distances"] = [str(pair).split(" ") for pair in pairs]
    # The renderer omits null; systemd omits empty values. Early daemons wrote no mark.
    for field in msgspec.structs.fields(PacketJudged):
        if field.required and field.encode_name != "mark":
            event.setdefault(field.encode_name, "" if field.encode_name in {"in", "out"} else None)
    if event["status"] is None and event["direction"] is not None:
        event["status"] = []
    return event


def _flatten(key: str, value: Any, parts: list[bytes]) -> None:  # noqa: ANN401 - what JSON can hold
    """Add an object as one field for each key, and a list as one field for each value."""
    if key in _COUNTS and isinstance(value, dict):
        value = list(value.items())
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
