# SPDX-License-Identifier: MIT
"""Reconstructs the input of a policy from the daemon's events.

Events have every field that a rule can match, except the TCP state of the flow that an ICMP error
quotes. The packet's octets are not recorded.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, final

import msgspec

from nfq_guard.finding import BOUNDS, Breach, Finding, Reason
from nfq_guard.flow import (
    IPS_DST_NAT,
    IPS_SRC_NAT,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Nat,
)
from nfq_guard.names import (
    DirectionName,
    address_bytes,
    direction_number,
    hook_number,
    protocol_number,
    tcp_flag_bits,
    tcp_state_number,
)
from nfq_guard.seqno import seq
from nfq_guard.whatif.recorded import Judged, Recorded
from nfq_guard.wire.packet import Datagram, Malformed, Packet, Queued, Segment

_JUDGED: Final = "packet_judged"
_UDP_HEADER: Final = 8
_NAT_STATUS: Final = {
    Nat.NONE: 0,
    Nat.SNAT: IPS_SRC_NAT,
    Nat.DNAT: IPS_DST_NAT,
    Nat.BOTH: IPS_SRC_NAT | IPS_DST_NAT,
    Nat.UNKNOWN: 0,
}


class _Breach(msgspec.Struct):
    bound: Reason
    actual: int
    limit: int
    distance: int


class _Event(msgspec.Struct, rename={"indev": "in", "outdev": "out"}):
    """The fields that matter here; `mark`, `status` and `ct_mark` may be missing."""

    timestamp: datetime
    hook: str
    family: int
    proto: str
    src: str | None
    dst: str | None
    sport: int | None
    dport: int | None
    tcp_flags: str | None
    seq: int | None
    ack: int | None
    payload: int | None
    reason: Reason
    breach: _Breach | None
    state: str | None
    nat: Nat
    evidence: Evidence
    direction: DirectionName | None
    verdict: str
    indev: str = ""
    outdev: str = ""
    mark: int = 0
    status: int | None = None
    ct_mark: int | None = None
    count: int = 1


class _Name(msgspec.Struct):
    event: str


@final
class EventFile:
    """Reads lines of JSON, in the order of the file.

    Attributes:
        unreadable: Lines that are not events.
        first_unreadable: Number of the first of them; 0 without any.
        others: Events of other kinds.
    """

    def __init__(self) -> None:
        """Begin with nothing read."""
        self.unreadable = 0
        self.first_unreadable = 0
        self.others = 0
        self._name = msgspec.json.Decoder(_Name)
        self._event = msgspec.json.Decoder(_Event)

    def read(self, lines: Iterable[bytes]) -> Iterator[Recorded]:
        """The packets of the events in `lines`."""
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                if self._name.decode(line).event != _JUDGED:
                    self.others += 1
                    continue
                recorded = _recorded(number, self._event.decode(line))
            except (msgspec.MsgspecError, ValueError, KeyError):
                self.unreadable += 1
                self.first_unreadable = self.first_unreadable or number
                continue
            yield recorded


def _recorded(number: int, event: _Event) -> Recorded:
    breach = event.breach
    proof = None
    if breach is not None:
        if breach.bound not in BOUNDS:
            raise ValueError(breach.bound)
        proof = Breach(breach.bound, seq(breach.actual), seq(breach.limit), breach.distance)
    packet = _packet(event)
    return Recorded(
        number=number,
        time_s=event.timestamp.timestamp(),
        count=event.count,
        packet=packet,
        judged=Judged(
            queued=Queued(b"", hook_number(event.hook), event.indev, event.outdev, event.mark, 0),
            snapshot=_snapshot(event, packet.proto),
            finding=Finding(event.reason, proof),
        ),
        passed=event.verdict == "accept",
    )


def _packet(event: _Event) -> Packet | Malformed:
    src = b"" if event.src is None else address_bytes(event.src)
    dst = b"" if event.dst is None else address_bytes(event.dst)
    proto = protocol_number(event.proto)
    if event.reason is Reason.MALFORMED or not src or not dst:
        return Malformed("", event.family, src, dst, proto)
    l4: Segment | Datagram | None = None
    if event.sport is not None and event.dport is not None:
        if event.tcp_flags is not None:
            flags = tcp_flag_bits(event.tcp_flags)
            l4 = Segment(
                event.sport,
                event.dport,
                seq(event.seq or 0),
                seq(event.ack or 0),
                flags,
                0,
                event.payload or 0,
                b"",
                0,
            )
        else:
            l4 = Datagram(event.sport, event.dport, _UDP_HEADER + (event.payload or 0), 0)
    return Packet(event.family, src, dst, proto, 0, 0, 0, 0, False, l4)  # noqa: FBT003 - more_fragments


def _snapshot(event: _Event, proto: int) -> FlowSnapshot | None:
    if event.direction is None:
        return None
    way = FlowTuple(proto, b"", b"", 0, 0)
    status = _NAT_STATUS[event.nat] if event.status is None else event.status
    state = 0 if event.state is None else tcp_state_number(event.state)
    direction = direction_number(event.direction)
    return FlowSnapshot(
        event.evidence, direction, way, way, status, event.ct_mark or 0, 0, 0, state, None
    )
