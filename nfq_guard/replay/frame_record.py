# SPDX-License-Identifier: MIT
"""One frame of a replay as a JSON object."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import orjson

from nfq_guard.capture.frame import own_number, source_of
from nfq_guard.finding import Breach
from nfq_guard.names import address, ports, protocol
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.words import doubt_sentence, state_name

_SECOND_NS = 1_000_000_000


class BreachRecord(TypedDict):
    """The bound that a packet broke.

    Attributes:
        bound: The bound.
        actual: Sequence number of the packet that broke it.
        limit: The last sequence number that would have passed.
        distance: Bytes from `limit` to `actual`.
    """

    bound: str
    actual: int
    limit: int
    distance: int


class CausedByRecord(TypedDict):
    """The INVALID packet that an RST answers.

    Attributes:
        frame: Its frame.
        reason: Why it is INVALID.
        delay_s: Time from that packet to the RST, in seconds.
        file: Its capture, when several are replayed together.
    """

    frame: int
    reason: str
    delay_s: float
    file: NotRequired[str]


class FrameRecord(TypedDict):
    """One frame.

    Attributes:
        frame: Number of the frame in its capture, from 1.
        time: Time of capture: seconds of the Unix epoch, with nine decimals.
        src: Source address; null without an IP packet.
        dst: Destination address; null without an IP packet.
        sport: Source port, where the protocol has ports.
        dport: Destination port, where the protocol has ports.
        proto: Protocol: `icmp`, `tcp`, `udp`, `gre`, `icmpv6`, `sctp`, or its number.
        ctstate: What `-m conntrack --ctstate` matches: `NEW`, `ESTABLISHED`, `RELATED`, `INVALID`
            or `UNTRACKED`; null where conntrack would see no packet.
        ignored: Whether conntrack left the packet's flow unchanged.
        reason: Why the packet is INVALID; null for any other.
        breach: The bound that it broke; null if none was broken.
        state: State of the flow after the packet.
        action: The action of the policy for an INVALID packet.
        rule: The rule that decides.
        detail: More about the reason; null if there is no more.
        doubt: Why the packet may be INVALID only because of gaps in this capture: `unseen-data`,
            `unseen-window`, `unseen-handshake`, `unseen-request`, `out-of-order`,
            `silence`, `frames-missing` or `capture-drops`; null if the finding is certain.
        doubt_detail: The doubt as a sentence, with the frame and the bytes; null without a doubt.
        absent: Why conntrack would see no packet in this frame; null if it would see one.
        caused_by: The INVALID packet that this RST answers; null for any other packet.
        file: The capture, of `explain` and of several that are replayed together.
    """

    frame: int
    time: orjson.Fragment
    src: str | None
    dst: str | None
    sport: int | None
    dport: int | None
    proto: str | None
    ctstate: str | None
    ignored: bool
    reason: str | None
    breach: BreachRecord | None
    state: str | None
    action: str | None
    rule: str | None
    detail: str | None
    doubt: str | None
    doubt_detail: str | None
    absent: str | None
    caused_by: CausedByRecord | None
    file: NotRequired[str]


def exact_seconds(time_ns: int) -> str:
    """Seconds with nine decimals; a float is too coarse for a time since the epoch."""
    sign = "-" if time_ns < 0 else ""
    seconds, rest = divmod(abs(time_ns), _SECOND_NS)
    return f"{sign}{seconds}.{rest:09d}"


def breach_object(breach: Breach | None) -> BreachRecord | None:
    """A broken bound as an object; None if no bound was broken."""
    if breach is None:
        return None
    return {
        "bound": breach.bound,
        "actual": breach.actual,
        "limit": breach.limit,
        "distance": breach.distance,
    }


def _caused_by(outcome: Outcome, files: Sequence[str]) -> CausedByRecord | None:
    cause = outcome.cause
    if cause is None:
        return None
    answered: CausedByRecord = {
        "frame": own_number(cause.frame),
        "reason": cause.reason,
        "delay_s": round(outcome.now - cause.at, 6),
    }
    if len(files) > 1:
        answered["file"] = files[source_of(cause.frame)]
    return answered


def record(outcome: Outcome, files: Sequence[str]) -> FrameRecord:
    """The record of an outcome; with several `files` it names the file of the frame."""
    packet = outcome.packet
    finding = outcome.finding
    decision = outcome.decision
    doubted = outcome.doubted
    sport, dport = (None, None) if packet is None else ports(packet)
    named: FrameRecord = {
        "frame": own_number(outcome.frame.number),
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
        "doubt": None if doubted is None else doubted.kind,
        "doubt_detail": None if doubted is None else doubt_sentence(doubted),
        "absent": outcome.absent or None,
        "caused_by": _caused_by(outcome, files),
    }
    if len(files) > 1:
        named["file"] = files[outcome.frame.source]
    return named
