# SPDX-License-Identifier: MIT
"""Events of packets as a daemon writes them, for tests of readers."""

from typing import Any


def event(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of an event
    """The event of a packet beyond the window of a translated flow, in dry-run."""
    fields: dict[str, Any] = {
        "event": "packet_judged",
        "timestamp": "2026-11-23T02:00:00.000001Z",
        "mode": "dry-run",
        "queue": 0,
        "hook": "PREROUTING",
        "in": "eth0",
        "out": "",
        "mark": 0,
        "family": 4,
        "proto": "tcp",
        "src": "10.244.0.2",
        "dst": "192.0.2.2",
        "sport": 8080,
        "dport": 40000,
        "tcp_flags": "A",
        "seq": 9000,
        "ack": 1,
        "payload": 0,
        "reason": "seq-over",
        "breach": {"bound": "seq-over", "actual": 9000, "limit": 1000, "distance": 8000},
        "state": "ESTABLISHED",
        "nat": "dnat",
        "evidence": "bpf",
        "direction": "reply",
        "status": ["seen-reply", "assured"],
        "ct_mark": 0,
        "rule": "translated",
        "action": "drop",
        "verdict": "accept",
        "would": "drop",
    }
    return fields | changes


def window(**changes: int) -> dict[str, int]:
    """The window of the flow of `event()`."""
    fields = {
        "sender_td_end": 500,
        "sender_td_maxend": 1000,
        "sender_td_maxwin": 29200,
        "sender_td_maxack": 1,
        "receiver_td_end": 50,
        "receiver_td_maxend": 29250,
        "receiver_td_maxwin": 65535,
        "receiver_td_maxack": 500,
        "acknowledged": 1,
    }
    return fields | changes
