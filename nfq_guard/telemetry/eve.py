# SPDX-License-Identifier: MIT
"""Renders events as Suricata's EVE JSON (docs.suricata.io, EVE JSON format; etc/schema.json).

A dropped packet is an object of `event_type` "drop", with Suricata's names for the fields that both
programs have. All other events, such as a packet that passed, have the type "nfq_guard", because
Suricata has no type for them. The object `nfq_guard` is always the whole event, as in the format
`json`.
"""

from typing import TYPE_CHECKING, Any, Final

import msgspec

from nfq_guard.names import tcp_flag_bits, visible_json
from nfq_guard.telemetry.events import Event, PacketJudged, all_fields
from nfq_guard.wire.packet import ACK, FIN, PSH, RST, SYN, UDP_HEADER, URG

if TYPE_CHECKING:  # commands that read events need no structlog, a quarter of their start
    from structlog.typing import EventDict, WrappedLogger

OBJECT: Final = "nfq_guard"

# Suricata's names that are not ours in capitals.
_PROTOCOLS: Final = {"icmpv6": "IPv6-ICMP"}
_DIRECTIONS: Final = {"original": "to_server", "reply": "to_client"}
_FLAGS: Final = (
    ("syn", SYN),
    ("ack", ACK),
    ("psh", PSH),
    ("rst", RST),
    ("urg", URG),
    ("fin", FIN),
)

Fields = dict[str, Any]


def eve_octets(event: Event, at: str | None = None) -> bytes:
    """One event as EVE JSON; `at` as for `all_fields`."""
    return visible_json(msgspec.json.encode(eve(event, at)))


def eve_line(_logger: "WrappedLogger", _name: str, event_dict: "EventDict") -> bytes:
    """Render one event (a structlog processor)."""
    return eve_octets(event_dict["event"], event_dict["at"])


def eve(event: Event, at: str | None = None) -> Fields:
    """The EVE object of an event; `at` as for `all_fields`."""
    whole = all_fields(event, at)
    # Suricata writes the offset from UTC without a colon.
    found: Fields = {
        "timestamp": whole["timestamp"].removesuffix("Z") + "+0000",
        "event_type": OBJECT,
    }
    if isinstance(event, PacketJudged):
        found |= _packet(event)
        if event.verdict == "drop":
            found["event_type"] = "drop"
            found["drop"] = _drop(event)
    found[OBJECT] = whole
    return found


def _packet(event: PacketJudged) -> Fields:
    """The fields of a packet, without those that it lacks."""
    found: Fields = {
        "in_iface": event.indev or None,
        "src_ip": event.src,
        "src_port": event.sport,
        "dest_ip": event.dst,
        "dest_port": event.dport,
        "proto": _PROTOCOLS.get(event.proto, event.proto.upper()),
        "ip_v": event.family or None,
        "direction": None if event.direction is None else _DIRECTIONS[event.direction],
        "community_id": event.community_id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _drop(event: PacketJudged) -> Fields:
    found: Fields = {}
    if event.tcp_flags is not None:
        bits = tcp_flag_bits(event.tcp_flags)
        found |= {"tcpseq": event.seq, "tcpack": event.ack}
        found |= {name: bool(bits & bit) for name, bit in _FLAGS}
    elif event.sport is not None and event.payload is not None:
        found["udplen"] = event.payload + UDP_HEADER
    found["reason"] = str(event.reason)
    found["verdict"] = {"action": "drop"}
    return found
