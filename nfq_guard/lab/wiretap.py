# SPDX-License-Identifier: MIT
"""Captures the links of a trial: packet sockets, a small decoder, and pcap files."""

import ctypes
import fcntl
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_guard.flow import IPV6
from nfq_guard.lab.netns import Namespace
from nfq_guard.names import endpoint
from nfq_guard.netlink.connection import enlarge
from nfq_guard.outfile import replacing
from nfq_guard.seqno import Seq, add
from nfq_guard.wire.packet import FIN, RST, SYN

_ETH_P_ALL: Final = 0x0003
_ETHERTYPES: Final = (0x0800, 0x86DD)
_SO_TIMESTAMPNS: Final = 35  # the number of the socket option and of its control message
_RECEIVE_BUFFER: Final = 8 << 20  # a trial moves well below 1 MB, and nothing may be lost
_LARGEST: Final = 65_575
_LINKTYPE_RAW: Final = 101
_PCAP_MAGIC_NS: Final = 0xA1B23C4D

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GLINK: Final = 0x0A
_ETHTOOL_STXCSUM: Final = 0x17

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One TCP segment captured on a link.

    Attributes:
        time_ns: Kernel's wall clock, nanoseconds.
        link: Label of the link.
        src: Source address and port.
        dst: Destination address and port.
        seq: Sequence number.
        ack: Acknowledgement number.
        flags: Flag bits.
        window: The window field, unscaled.
        payload: Its data.
        wscale: Window scale option, if present.
        timestamps: TSval and TSecr, if present.
    """

    time_ns: int
    link: str
    src: Address
    dst: Address
    seq: Seq
    ack: Seq
    flags: int
    window: int
    payload: bytes
    wscale: int | None
    timestamps: tuple[int, int] | None

    @property
    def end(self) -> Seq:
        """The sequence number after it; SYN and FIN count one each."""
        return add(self.seq, len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN))

    @property
    def is_rst(self) -> bool:
        """Whether RST is set."""
        return bool(self.flags & RST)

    def __str__(self) -> str:
        """Source and destination in tcpdump's notation."""
        return f"{endpoint(*self.src)} > {endpoint(*self.dst)}"


def read_segment(octets: bytes, *, time_ns: int, link: str) -> Segment | None:
    """The TCP segment in an IPv4 or IPv6 packet; None for anything else.

    Does not check lengths, because the packets come from this machine's own kernel, which sends TCP
    over IPv6 without extension headers.
    """
    if len(octets) < 40:
        return None
    if octets[0] >> 4 == IPV6:
        domain, proto, start = socket.AF_INET6, octets[6], 40
        length, src, dst = start + int.from_bytes(octets[4:6]), octets[8:24], octets[24:40]
    else:
        domain, proto, start = socket.AF_INET, octets[9], (octets[0] & 15) * 4
        length, src, dst = int.from_bytes(octets[2:4]), octets[12:16], octets[16:20]
    if proto != socket.IPPROTO_TCP or len(octets) < start + 20:
        return None
    sport, dport, number, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", octets, start)
    head = start + (offset >> 4) * 4
    wscale, timestamps = _options(octets[start + 20 : head])
    return Segment(
        time_ns=time_ns,
        link=link,
        src=(socket.inet_ntop(domain, src), sport),
        dst=(socket.inet_ntop(domain, dst), dport),
        seq=Seq(number),
        ack=Seq(ack),
        flags=flags,
        window=window,
        payload=octets[head:length],
        wscale=wscale,
        timestamps=timestamps,
    )


def _options(octets: bytes) -> tuple[int | None, tuple[int, int] | None]:
    wscale: int | None = None
    timestamps: tuple[int, int] | None = None
    at = 0
    while at < len(octets) and octets[at] != 0:
        if octets[at] == 1:
            at += 1
            continue
        kind, size = octets[at], octets[at + 1]
        if kind == 3:
            wscale = octets[at + 2]
        elif kind == 8:
            value, echo = struct.unpack_from("!II", octets, at + 2)
            timestamps = (value, echo)
        at += max(size, 2)
    return wscale, timestamps


class Tap:
    """Captures one interface, or all interfaces of a namespace.

    Attributes:
        label: The link's label.
        segments: The TCP segments captured so far, in order.
    """

    def __init__(self, namespace: Namespace, interface: str | None, label: str) -> None:
        """Start capturing `interface`; None for all interfaces."""
        self.label = label
        self.segments: list[Segment] = []
        self._recorded: list[tuple[int, bytes]] = []
        with namespace.entered():
            # Protocol 0 keeps the socket from capturing every interface before it is bound to one.
            protocol = 0 if interface else socket.htons(_ETH_P_ALL)
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol)
            enlarge(self._socket, _RECEIVE_BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.settimeout(0)
            if interface:
                self._socket.bind((interface, _ETH_P_ALL))

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop capturing; `segments` stays."""
        self._socket.close()

    def drain(self) -> bool:
        """Read the waiting packets. Returns whether a TCP segment was among them."""
        before = len(self.segments)
        while True:
            try:
                octets, control, _, address = self._socket.recvmsg(_LARGEST, 64)
            except BlockingIOError:
                return len(self.segments) > before
            if address[1] not in _ETHERTYPES:
                continue
            time_ns = 0
            for level, kind, value in control:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("@qq", value)
                    time_ns = seconds * 1_000_000_000 + nanoseconds
            self._recorded.append((time_ns, octets))
            segment = read_segment(octets, time_ns=time_ns, link=self.label)
            if segment is not None:
                self.segments.append(segment)

    def write_pcap(self, path: Path) -> None:
        """Write everything captured: classic pcap, nanoseconds, link type raw IP."""
        with replacing(path) as out:
            out.write(struct.pack("!IHHiIII", _PCAP_MAGIC_NS, 2, 4, 0, 0, _LARGEST, _LINKTYPE_RAW))
            for time_ns, octets in self._recorded:
                seconds, rest = divmod(time_ns, 1_000_000_000)
                out.write(struct.pack("!IIII", seconds, rest, len(octets), len(octets)) + octets)


def settle(
    taps: Sequence[Tap], *, quiet_s: float, limit_s: float, until: Callable[[], bool] | None = None
) -> None:
    """Capture until the links have been quiet for `quiet_s`, or for `limit_s` at most.

    With `until`, capture until it returns true instead, or for `limit_s` at most.
    """
    deadline = time.monotonic() + limit_s
    last = time.monotonic()
    while (moment := time.monotonic()) < deadline:
        if until is not None and until():
            return
        if until is None and moment - last >= quiet_s:
            return
        ready, _, _ = select.select(taps, [], [], min(quiet_s, 0.02))
        for tap in ready:
            if tap.drain():
                last = time.monotonic()


def checksums_in_software(namespace: Namespace, interface: str) -> None:
    """Disable transmit checksum offload, so that captures contain complete checksums.

    This also disables segmentation offload, which depends on checksum offload.
    """
    _ethtool(namespace, interface, _ETHTOOL_STXCSUM)


def announce_carrier(namespace: Namespace, interface: str) -> None:
    """Make the kernel process the carrier state of an interface now, not within a second.

    Its IPv6 addresses are usable only after that. Kernels before 6.0 ignore the request.
    """
    _ethtool(namespace, interface, _ETHTOOL_GLINK)


def _ethtool(namespace: Namespace, interface: str, command: int) -> None:
    value = ctypes.create_string_buffer(struct.pack("@II", command, 0))
    request = struct.pack("@16sP8x", interface.encode(), ctypes.addressof(value))
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, _SIOCETHTOOL, request)
