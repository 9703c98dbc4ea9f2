# SPDX-License-Identifier: MIT
"""Events, by structlog (design 8): one JSON object each, unless another renderer is given.

`packet_judged` has a fixed set of fields, all of them in every event except `count`;
`shadow`, which is what a policy on trial says where it differs; and `lookup_error`, the name of the
errno of a lookup that failed, for a packet that was then judged without evidence. A field that
a packet does not have, such as `seq` of a UDP datagram, is null.
"""

import errno
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, cast, final

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nfq_guard.engine import VERDICT_DROP, Judgment, Mode
from nfq_guard.flow import PROTO_TCP, Evidence, Nat
from nfq_guard.names import address, direction, hook, protocol, tcp_flags, tcp_state
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import Datagram, IcmpMessage, Packet, Segment

_UDP_HEADER: Final = 8


def timestamp() -> str:
    """The time of day as events carry it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def packet_fields(
    judgment: Judgment, *, mode: Mode, queue_num: int, evidence: Evidence, when: str
) -> dict[str, Any]:
    """The fields of `packet_judged`, without `event` and `count`.

    Args:
        judgment: The packet, judged.
        mode: In which mode; `would` says what enforce does, whatever the mode.
        queue_num: The queue that it came from.
        evidence: Where the flow was looked up, for a packet that has no snapshot to say so.
        when: `timestamp()` of its batch.
    """
    queued = judgment.queued
    packet = judgment.packet
    snapshot = judgment.snapshot
    finding = judgment.finding
    decision = judgment.decision
    breach = finding.breach
    l4 = packet.l4 if isinstance(packet, Packet) else None
    segment = l4 if isinstance(l4, Segment) else None
    ports = l4 if isinstance(l4, Segment | Datagram) else None
    action = decision.action
    fields = {
        "timestamp": when,
        "mode": mode,
        "queue": queue_num,
        "hook": hook(queued.hook),
        "in": queued.indev,
        "out": queued.outdev,
        "mark": queued.mark,
        "family": packet.family,
        "proto": protocol(packet.proto),
        "src": address(packet.src),
        "dst": address(packet.dst),
        "sport": ports.sport if ports is not None else None,
        "dport": ports.dport if ports is not None else None,
        "tcp_flags": tcp_flags(segment.flags) if segment is not None else None,
        "seq": segment.seq if segment is not None else None,
        "ack": segment.ack if segment is not None else None,
        "payload": _payload(l4),
        "reason": finding.reason,
        "breach": None
        if breach is None
        else {
            "bound": breach.bound,
            "actual": breach.actual,
            "limit": breach.limit,
            "distance": breach.distance,
        },
        "state": None
        if snapshot is None or packet.proto != PROTO_TCP
        else tcp_state(snapshot.state),
        "nat": Nat.UNKNOWN if snapshot is None else snapshot.nat,
        "evidence": evidence if snapshot is None else snapshot.evidence,
        "direction": None if snapshot is None else direction(snapshot.direction),
        "status": None if snapshot is None else snapshot.status,
        "ct_mark": None if snapshot is None else snapshot.mark,
        "rule": decision.rule,
        "action": action,
        "verdict": "drop" if judgment.verdict == VERDICT_DROP else "accept",
        "would": "drop" if decision.drops else "accept",
    }
    if judgment.shadow is not None:
        told = judgment.shadow.shadow
        fields["shadow"] = {"rule": told.rule, "action": told.action}
    if judgment.lookup_error:
        code = judgment.lookup_error
        fields["evidence"] = Evidence.NONE
        fields["lookup_error"] = errno.errorcode.get(code, str(code))
    return fields


def _payload(l4: Segment | Datagram | IcmpMessage | None) -> int | None:
    """Octets of data; None where there is no saying."""
    if isinstance(l4, Segment):
        return l4.payload_len
    return l4.length - _UDP_HEADER if isinstance(l4, Datagram) else None


@final
class EventLog:
    """Writes events into a sink; `LineSink.push` brings them out.

    Attributes:
        last_error: The last event of level error, with its time; None while there was none.
    """

    def __init__(self, sink: LineSink, render: Processor | None = None) -> None:
        """Render by `Console`, by `JournalRenderer`, or, without a word, as JSON."""
        self.last_error: dict[str, object] | None = None
        render = render or structlog.processors.JSONRenderer(_json)
        # BytesLogger uses the file's write and flush, and nothing else of it.
        logger = structlog.BytesLogger(cast("BinaryIO", sink))
        self._packets = structlog.wrap_logger(
            logger,
            processors=[render],
            wrapper_class=structlog.BoundLoggerBase,
            event="packet_judged",
        ).bind()
        self._notes = structlog.wrap_logger(
            logger,
            processors=[structlog.processors.add_log_level, _stamp, render],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        ).bind()

    def packet(self, fields: dict[str, Any], count: int) -> None:
        """One `packet_judged`; `count` packets are meant by it."""
        if count > 1:
            fields["count"] = count
        # The wrapper's own way to a method of the logger underneath: no level, no clock.
        self._packets._proxy_to_logger("info", None, **fields)  # noqa: SLF001 - for wrappers' use

    def info(self, event: str, **fields: object) -> None:
        """Something that happened to the daemon."""
        self._notes.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that an operator should look at."""
        self._notes.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Something that is broken."""
        self.last_error = {"at": timestamp(), "event": event, **fields}
        self._notes.error(event, **fields)


def _json(event: dict[str, Any], **_: object) -> bytes:
    return orjson.dumps(event, default=str)


def _stamp(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    return {"event": event.pop("event"), "timestamp": timestamp(), **event}
