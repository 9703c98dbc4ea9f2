# SPDX-License-Identifier: MIT
"""Texts about one flow of `top`."""

from typing import Any

from nfq_guard.finding import Reason
from nfq_guard.flow import escapes
from nfq_guard.names import endpoint

Fields = dict[str, Any]


Key = tuple[str, str, int, str, int]


def last_event(flow: Fields) -> Fields:
    """Its last event."""
    found: Fields = flow["events"][-1]
    return found


def ends_of(flow: Fields) -> str:
    """Protocol, source and destination of its last packet: `tcp 10.0.0.1:80 > 10.0.0.2:40000`."""
    event = last_event(flow)
    src, dst = endpoint(event["src"], event["sport"]), endpoint(event["dst"], event["dport"])
    return f"{event['proto']} {src} > {dst}"


def action_text(flow: Fields) -> str:
    """The action of the policy for its last packet, or the action in enforce."""
    event = last_event(flow)
    would = "would " if event["would"] != event["verdict"] else ""
    return f"{would}{event['action']}"


def reasons_text(flow: Fields, width: int = 1 << 10) -> str:
    """Reasons by their packets, the most frequent first, as many as fit."""
    ranked = _ranked(flow)
    if len(ranked) == 1:
        return ranked[0][0]
    total = sum(packets for _, packets in ranked)
    shown = ranked[0][0]
    shares = [f"{reason} {100 * packets // total}%" for reason, packets in ranked]
    for number in range(1, len(shares) + 1):
        text = ", ".join(shares[:number])
        if len(text) <= width:
            shown = text
    return shown


def main_reason(flow: Fields) -> str:
    """The reason that most of its packets have."""
    return _ranked(flow)[0][0]


def _ranked(flow: Fields) -> list[tuple[str, int]]:
    return sorted(
        flow["reasons"].items(), key=lambda pair: (-pair[1], pair[0] == Reason.NO_ENTRY, pair[0])
    )


def has_escaped(flow: Fields) -> bool:
    """Whether a packet of its last event left untranslated."""
    event = last_event(flow)
    return escapes(event["verdict"], event["nat"], leak=event.get("leak", False))


def distance_of(flow: Fields) -> int:
    """Bytes by which its last packet exceeds the bound that it broke; -1 for none."""
    breach = last_event(flow)["breach"]
    return -1 if breach is None else int(breach["distance"])


def distance_text(flow: Fields) -> str:
    """The distance as text; `-` for none."""
    distance = distance_of(flow)
    return "-" if distance < 0 else str(distance)


def key_of(flow: Fields) -> Key:
    """The key of a flow."""
    found = flow["flow"]
    return found["proto"], found["a"], found["a_port"], found["b"], found["b_port"]
