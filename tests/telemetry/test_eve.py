# SPDX-License-Identifier: MIT
"""EVE JSON, compared with the names and types of Suricata's etc/schema.json as of 8.0."""

import re
from typing import Any, Final

import orjson
import pytest

from nfq_guard.engine import Mode
from nfq_guard.finding import Reason
from nfq_guard.flow import Evidence
from nfq_guard.telemetry.eve import eve, eve_octets
from nfq_guard.telemetry.events import Event, PacketJudged, all_fields, name_of
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Malformed
from tests.support.event_examples import examples
from tests.support.judgments import judgment, snapshot
from tests.support.packets import A4, A6, B4, B6, icmp, udp

# The fields that our events share with Suricata's, by type; its schema refuses others.
SHARED: Final[dict[str, type]] = {
    "timestamp": str,
    "event_type": str,
    "in_iface": str,
    "src_ip": str,
    "src_port": int,
    "dest_ip": str,
    "dest_port": int,
    "proto": str,
    "ip_v": int,
    "direction": str,
    "community_id": str,
    "drop": dict,
}
DROP: Final[dict[str, type]] = {
    "tcpseq": int,
    "tcpack": int,
    "syn": bool,
    "ack": bool,
    "psh": bool,
    "rst": bool,
    "urg": bool,
    "fin": bool,
    "udplen": int,
    "reason": str,
    "verdict": dict,
}
TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d+[+\-]\d+")


def fits(found: dict[str, Any]) -> bool:
    """Whether all names and types are Suricata's, except for our own object."""
    own = found.pop("nfq_guard")
    drop = found.get("drop", {})
    return (
        isinstance(own, dict)
        and all(type(value) is SHARED[name] for name, value in found.items())
        and all(type(value) is DROP[name] for name, value in drop.items())
        and TIME.fullmatch(found["timestamp"]) is not None
        and drop.get("verdict", {"action": "drop"}) == {"action": "drop"}
    )


def event_of(octets: bytes = b"", **changes: Any) -> PacketJudged:  # noqa: ANN401 - its arguments
    return packet_judged(
        judgment(**({"packet": decode(octets)} if octets else {}) | changes),
        mode=Mode.ENFORCE,
        queue_num=7,
        evidence=Evidence.BPF,
        when="2026-01-02T03:04:05.000006Z",
    )


def test_a_dropped_packet() -> None:
    event = event_of(flow=snapshot())
    found = eve(event)
    assert found == {
        "timestamp": "2026-01-02T03:04:05.000006+0000",
        "event_type": "drop",
        "in_iface": "eth0",
        "src_ip": "10.0.0.1",
        "src_port": 40_000,
        "dest_ip": "10.0.0.2",
        "dest_port": 80,
        "proto": "TCP",
        "ip_v": 4,
        "direction": "to_server",
        "community_id": event.community_id,
        "drop": {
            "tcpseq": 5000,
            "tcpack": 9000,
            "syn": False,
            "ack": True,
            "psh": True,
            "rst": False,
            "urg": False,
            "fin": False,
            "reason": "seq-over",
            "verdict": {"action": "drop"},
        },
        "nfq_guard": all_fields(event),
    }
    assert fits(found)


@pytest.mark.parametrize(
    ("octets", "proto", "drop"),
    [
        (udp(A4, B4, 1, 2, b"four"), "UDP", {"udplen": 12}),
        (icmp(A4, B4, 8, bytes(4)), "ICMP", {}),
        (icmp(A6, B6, 128, bytes(4)), "IPv6-ICMP", {}),
    ],
)
def test_other_protocols(octets: bytes, proto: str, drop: dict[str, int]) -> None:
    found = eve(event_of(octets))
    assert found["proto"] == proto
    assert {name: found["drop"].pop(name) for name in drop} == drop
    assert set(found["drop"]) == {"reason", "verdict"}
    assert fits(found)


def test_a_packet_that_passed_is_no_drop() -> None:
    found = eve(event_of(verdict=1))
    assert found["event_type"] == "nfq_guard"
    assert "drop" not in found
    assert found["src_ip"] == "10.0.0.1"
    assert fits(found)


def test_a_packet_without_headers() -> None:
    event = event_of(packet=Malformed("cut short"), reason=Reason.MALFORMED)
    found = eve(event)
    assert set(found) == {
        "timestamp", "event_type", "in_iface", "proto", "drop", "nfq_guard",
    }  # fmt: skip
    assert fits(found)


@pytest.mark.parametrize("event", examples(), ids=lambda event: name_of(type(event)))
def test_every_event_is_eve(event: Event) -> None:
    if not isinstance(event, PacketJudged):  # its example has no flags that could be read
        assert fits(orjson.loads(eve_octets(event)))
