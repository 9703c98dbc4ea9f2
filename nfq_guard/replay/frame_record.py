# SPDX-License-Identifier: MIT
"""One frame of a replay as a JSON object."""

from collections.abc import Sequence

import orjson

from nfq_guard.finding import Breach
from nfq_guard.names import address, ports, protocol
from nfq_guard.replay.replayer import Outcome
from nfq_guard.replay.words import state_name

_SECOND_NS = 1_000_000_000


def exact_seconds(time_ns: int) -> str:
    """Seconds with nine decimals, which a float cannot hold for a time of our days."""
    sign = "-" if time_ns < 0 else ""
    seconds, rest = divmod(abs(time_ns), _SECOND_NS)
    return f"{sign}{seconds}.{rest:09d}"


def breach_object(breach: Breach | None) -> dict[str, object] | None:
    """The proof as an object."""
    if breach is None:
        return None
    return {
        "bound": breach.bound,
        "actual": breach.actual,
        "limit": breach.limit,
        "distance": breach.distance,
    }


def record(outcome: Outcome, files: Sequence[str]) -> dict[str, object]:
    """The object; with several `files` it says in which the frame is.

    `detail` says more about the reason, `absent` why conntrack
    would see no packet.
    """
    packet = outcome.packet
    finding = outcome.finding
    decision = outcome.decision
    sport, dport = (None, None) if packet is None else ports(packet)
    named: dict[str, object] = {
        "frame": outcome.frame.number,
        "time": orjson.Fragment(exact_seconds(outcome.frame.time_ns)),
        "src": None if packet is None else address(packet.src),
        "dst": None if packet is None else address(packet.dst),
        "sport": sport,
        "dport": dport,
        "proto": None if packet is None else protocol(packet.proto),
        "ctstate": outcome.ctstate,
        "ignored": outcome.ignored is not None,
        "reason": None if finding is None else finding.reason,
        "breach": None if finding is None else breach_object(finding.breach),
        "state": state_name(outcome.state),
        "action": None if decision is None else decision.action,
        "rule": None if decision is None else decision.rule,
        "detail": None if finding is None else finding.detail or None,
        "absent": outcome.absent or None,
    }
    if len(files) > 1:
        named["file"] = files[outcome.frame.source]
    return named
