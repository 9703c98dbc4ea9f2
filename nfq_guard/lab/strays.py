# SPDX-License-Identifier: MIT
"""Stray segments, built with scapy from the sequence numbers of the live flow."""

import importlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import ModuleType
from typing import Final, assert_never

from nfq_guard.errors import UnavailableError
from nfq_guard.flow import IPV6
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.wiretap import Address, Segment
from nfq_guard.seqno import Seq, add, later
from nfq_guard.wire.packet import ACK, SYN

# Distance from the last sequence number that conntrack still accepts.
BEYOND_BYTES: Final = 10_000
# In the middle of the sequence numbers above the window, as a typical forged number is.
FORGED_BYTES: Final = 1 << 30
PAYLOAD: Final = b"stray segment beyond the window"


class Kind(StrEnum):
    """What is wrong with a stray segment."""

    SEQ_OVER = "beyond the window"
    OLD_DATA = "a late copy of the first answer"
    STALE_RST = "an RST below the acknowledged sequence number"
    FORGED_FIN = "a FIN of a sender that does not know the sequence numbers"
    FORGED_RST = "an RST of a sender that does not know the sequence numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """One segment to send into a live connection.

    Attributes:
        kind: What is wrong with it.
        sender: Namespace that sends it.
        tap: Label of a link on which the flow has the sender's addresses.
        from_client: Whether it travels in the direction of the requests.
        source: Its source, if it is not the sender's address on that link.
        pause_s: How long the connection is idle before it, in seconds.
    """

    kind: Kind
    sender: Namespace
    tap: str
    from_client: bool
    source: Address | None = None
    pause_s: float = 0


@dataclass(slots=True)
class Side:
    """The state of one end of the flow, from its segments on the tapped link.

    Attributes:
        address: Its address and port.
        isn: Its initial sequence number.
        end: Highest sequence number sent, plus one.
        limit: Right edge of the window that it has offered, exclusive.
        maxwin: Largest window offered, in bytes.
        scale: Its window shift.
        timestamps: TSval and TSecr of its last segment.
        data: Its first segment with data.
    """

    address: Address
    isn: Seq
    end: Seq
    limit: Seq | None = None
    maxwin: int = 0
    scale: int = 0
    timestamps: tuple[int, int] | None = None
    data: Segment | None = field(default=None, repr=False)

    def update(self, segment: Segment) -> None:
        """Account for one segment from this end."""
        window = segment.window
        if segment.flags & SYN:
            self.isn = segment.seq
            self.end = segment.end
            self.scale = segment.wscale or 0
        else:
            window <<= self.scale
        self.end = later(self.end, segment.end)
        self.maxwin = max(self.maxwin, window)
        if segment.flags & ACK:
            edge = add(segment.ack, window)
            self.limit = edge if self.limit is None else later(self.limit, edge)
        if segment.timestamps:
            self.timestamps = segment.timestamps
        if self.data is None and segment.payload:
            self.data = segment


def follow(segments: Sequence[Segment]) -> tuple[Side, Side]:
    """The client's and the server's side of the first connection in `segments`.

    Raises:
        UnavailableError: There is no connection.
    """
    opening = next((s for s in segments if s.flags & (SYN | ACK) == SYN), None)
    if opening is None:
        raise UnavailableError("the lab saw no connection on the expected link")
    client = Side(opening.src, opening.seq, opening.end)
    server = Side(opening.dst, Seq(0), Seq(0))
    for segment in segments:
        if (segment.src, segment.dst) == (client.address, server.address):
            client.update(segment)
        elif (segment.src, segment.dst) == (server.address, client.address):
            if segment.flags & SYN:
                server.end = segment.end
            server.update(segment)
    return client, server


def layers() -> tuple[ModuleType, ModuleType]:
    """The modules of scapy with the layers of IPv4 and TCP, and with those of IPv6.

    Raises:
        UnavailableError: It is not installed; only the lab needs it.
    """
    try:
        inet, inet6 = map(importlib.import_module, ("scapy.layers.inet", "scapy.layers.inet6"))
    except ImportError:
        raise UnavailableError(
            "the lab needs scapy: pip install 'nfq-guard[lab]', or Debian's python3-scapy"
        ) from None
    return inet, inet6


def build(stray: Stray, client: Side, server: Side) -> bytes:
    """The octets of `stray`, IP header first, in the flow between `client` and `server`."""
    sender, receiver = (client, server) if stray.from_client else (server, client)
    source = stray.source or sender.address
    match stray.kind:
        case Kind.SEQ_OVER:
            # Conntrack tolerates an overshoot of at most one receiver window (kernel.md 1.6 f).
            limit = sender.end if receiver.limit is None else receiver.limit
            number = add(limit, receiver.maxwin + BEYOND_BYTES)
            ack, flags, payload = receiver.end, "PA", PAYLOAD
        case Kind.OLD_DATA:
            data = sender.data
            if data is None:
                raise UnavailableError("the lab saw no answer that it could repeat")
            number, ack, flags, payload = data.seq, data.ack, "PA", data.payload
        case Kind.FORGED_FIN | Kind.FORGED_RST:
            number, ack, payload = add(sender.end, FORGED_BYTES), receiver.end, b""
            flags = "FA" if stray.kind is Kind.FORGED_FIN else "R"
        case Kind.STALE_RST:
            number, ack, flags, payload = add(sender.isn, 1), receiver.end, "RA", b""
        case _:
            assert_never(stray.kind)
    options: list[tuple[str, tuple[int, int] | None]] = []
    if sender.timestamps:
        options = [("NOP", None), ("NOP", None), ("Timestamp", sender.timestamps)]
    inet, inet6 = layers()
    head = inet6.IPv6 if ":" in source[0] else inet.IP
    return bytes(
        head(src=source[0], dst=receiver.address[0])
        / inet.TCP(
            sport=source[1],
            dport=receiver.address[1],
            seq=number,
            ack=ack,
            flags=flags,
            window=501,
            options=options,
        )
        / payload
    )


def send(namespace: Namespace, octets: bytes) -> None:
    """Send an unchanged packet from inside `namespace`, routed by its destination."""
    if octets[0] >> 4 == IPV6:
        domain, target = socket.AF_INET6, octets[24:40]
    else:
        domain, target = socket.AF_INET, octets[16:20]
    with (
        namespace.entered(),
        socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        raw.sendto(octets, (socket.inet_ntop(domain, target), 0))
