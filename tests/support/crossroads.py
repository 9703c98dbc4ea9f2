# SPDX-License-Identifier: MIT
"""A host with several uplinks, on which foreign rules route INVALID packets by marks.

`Crossroads.observe` sends INVALID segments through the host and from it, and returns every segment
that leaves it: where, in which order, and with which mark. A chain of the test
after all others writes the mark into the DSCP field. A run with the guard must equal one without.
"""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from nfq_guard.firewall import UNJUDGED_MARK, Family
from nfq_guard.lab.netns import Namespace, veth

FAMILIES: Final = (Family.IPV4, Family.IPV6)
_DOMAINS: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_ETHERTYPES: Final = {0x0800: Family.IPV4, 0x86DD: Family.IPV6}
_UPLINKS: Final = ("up1", "up2", "up3")
_PROXY_PORT: Final = 15001
# A mark above these is reported as this value of the DSCP field.
_OTHER: Final = 63
_HOST_MAC: Final = "02:00:00:00:00:aa"
# Longer than a loaded machine takes to forward a packet, seconds.
_QUIET_S: Final = 0.3
_PATIENCE_S: Final = 20.0

# Source ports of segments, by the foreign rule that applies.
_PLAIN: Final = (1000, 1008)
_RECEIVED: Final = (1001, 1002, 1003, 1004, 1005, 1006, 1007)
_SENT: Final = (1011, 1012, 1013, 1014, 1016, 1017)
_COPIES: Final = 3
# PACKET_OUTGOING: packets that the tapped end itself sends.
_OUTGOING: Final = 4


class Seen(NamedTuple):
    """A segment that left the host; one that was delivered locally is answered by an RST.

    Attributes:
        place: Name of the host's interface by which it left.
        family: The family.
        ports: Source and destination port.
        seq: Its sequence number.
        mark: The packet's mark as it passed the last chain.
    """

    place: str
    family: Family
    ports: tuple[int, int]
    seq: int
    mark: int


def _address(family: Family, network: int, host: int) -> str:
    return f"10.{network}.0.{host}" if family is Family.IPV4 else f"fd00:{network}::{host}"


def _length(family: Family) -> int:
    return 24 if family is Family.IPV4 else 64


# Foreign rules in iptables' syntax, for both families; `{gateway}` is on the third uplink.
_MANGLE: Final = """\
*mangle
:DIVERT - [0:0]
:MARKS - [0:0]
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf
-A PREROUTING -p tcp -m tcp --dport 2443 -j TPROXY --on-port 15001 --tproxy-mark 0x4/0x4
-A PREROUTING -p tcp -m tcp --sport 1001 -j MARK --set-mark 0x1
-A PREROUTING -p tcp -m tcp --sport 1002 -j MARK --set-xmark 0x2/0xf
-A PREROUTING -p tcp -m tcp --sport 1003 -j TEE --gateway {gateway}
-A PREROUTING -j MARKS
-A MARKS -p tcp -m tcp --sport 1004 -j MARK --or-mark 0x1
-A MARKS -p tcp -m tcp --sport 1004 -j RETURN
-A PREROUTING -m conntrack --ctstate INVALID -p tcp -m tcp --sport 1008 -j MARK --set-mark 0x5
-A FORWARD -p tcp -m tcp --sport 1007 -j MARK --set-mark 0x3
-A OUTPUT -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf
-A OUTPUT -p tcp -m tcp --sport 1011 -j MARK --set-mark 0x1
-A OUTPUT -p tcp -m tcp --sport 1012 -j MARK --set-xmark 0x2/0xf
-A OUTPUT -p tcp -m tcp --sport 1013 -j TEE --gateway {gateway}
-A OUTPUT -p tcp -m tcp --sport 1014 -j MARKS
-A MARKS -p tcp -m tcp --sport 1014 -j MARK --set-mark 0x1
-A POSTROUTING -p tcp -m tcp --sport 1017 -j MARK --set-mark 0x6
COMMIT
"""

# The same in nftables; copies need a table for each family.
_NATIVE_MANGLE: Final = f"""\
table inet others {{
\tchain prerouting {{
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tmeta mark set ct mark and 0xf
\t\ttcp dport 2443 tproxy to :{_PROXY_PORT} meta mark set meta mark or 0x4 accept
\t\ttcp sport 1001 meta mark set 0x1
\t\ttcp sport 1002 meta mark set meta mark and 0xfffffff0 or 0x2
\t\ttcp sport 1004 meta mark set meta mark or 0x1 accept
\t\tct state invalid tcp sport 1008 meta mark set 0x5
\t}}
\tchain output {{
\t\ttype route hook output priority mangle; policy accept;
\t\ttcp sport 1011 meta mark set 0x1
\t\ttcp sport 1012 meta mark set meta mark and 0xfffffff0 or 0x2
\t\ttcp sport 1014 meta mark set 0x1 accept
\t}}
\tchain forward {{
\t\ttype filter hook forward priority mangle; policy accept;
\t\ttcp sport 1007 meta mark set 0x3
\t}}
\tchain postrouting {{
\t\ttype filter hook postrouting priority mangle; policy accept;
\t\ttcp sport 1017 meta mark set 0x6
\t}}
}}
"""

_NATIVE_COPIES: Final = """\
table {table} copies {{
\tchain prerouting {{
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\ttcp sport 1003 dup to {gateway}
\t}}
\tchain output {{
\t\ttype filter hook output priority mangle; policy accept;
\t\ttcp sport 1013 dup to {gateway}
\t}}
}}
"""

# Native chains around those of iptables, as other programs have them.
_AROUND: Final = """\
table inet before {
\tchain prerouting {
\t\ttype filter hook prerouting priority mangle - 10; policy accept;
\t\ttcp sport 1005 meta mark set 0x1
\t}
}
table inet after {
\tchain prerouting {
\t\ttype filter hook prerouting priority mangle + 20; policy accept;
\t\ttcp sport 1006 meta mark set 0x1
\t}
\tchain output {
\t\ttype route hook output priority mangle + 20; policy accept;
\t\ttcp sport 1016 meta mark set 0x1
\t}
}
"""


def _observer() -> str:
    lines = ["table inet observer {"]
    for hook in ("postrouting", "input"):
        lines += [
            f"\tchain {hook} {{",
            f"\t\ttype filter hook {hook} priority 500; policy accept;",
        ]
        for word in ("ip", "ip6"):
            family = "ipv4" if word == "ip" else "ipv6"
            lines += [f"\t\tmeta nfproto {family} {word} dscp set {_OTHER}"]
            lines += [f"\t\tmeta mark {mark:#x} {word} dscp set {mark}" for mark in range(16)]
        lines += ["\t}"]
    return "\n".join([*lines, "}", ""])


class Crossroads:
    """The host, a peer that sends through it, and whatever is behind its uplinks.

    Attributes:
        host: The namespace in which the guard is to run.
    """

    def __init__(self, namespaces: tuple[Namespace, Namespace, Namespace]) -> None:
        """Link the namespaces of the peer, the host and the networks behind its uplinks."""
        self._peer, self.host, self._beyond = namespaces
        self._serial = 0
        self._link()
        self._route()

    def _link(self) -> None:
        for key in ("all", "default"):
            self.host.sysctl(f"ipv4.conf.{key}.rp_filter", 0)
        self.host.sysctl("ipv4.ip_forward", 1)
        self.host.sysctl("ipv6.conf.all.forwarding", 1)
        links = [("inner", self._peer, "peer", 1)]
        links += [(name, self._beyond, f"far{name}", 2 + n) for n, name in enumerate(_UPLINKS)]
        for name, other, far, network in links:
            pairs = [
                (
                    f"{_address(f, network, 1)}/{_length(f)}",
                    f"{_address(f, network, 2)}/{_length(f)}",
                )
                for f in FAMILIES
            ]
            veth(self.host, name, other, far, *pairs)
            mac = f"02:00:00:00:00:{network:02x}"
            other.ip("link", "set", far, "address", mac)
            # Permanent neighbours, because discovery takes time; a new address removes them.
            self.host.ip("link", "set", name, "address", _HOST_MAC)
            for family in FAMILIES:
                gateway = _address(family, network, 2)
                self.host.ip("neigh", "replace", gateway, "lladdr", mac, "dev", name)
        for family in FAMILIES:
            near = _address(family, 1, 1)
            words = ("lladdr", _HOST_MAC, "dev", "peer")
            self._peer.ip("neigh", "replace", near, *words)
            self._peer.ip("route", "add", "default", "via", near, "dev", "peer")

    def _route(self) -> None:
        """Route by the main table to the first uplink, and by marks to the others."""
        ip = self.host.ip
        for family in FAMILIES:
            six = ("-6",) if family is Family.IPV6 else ()
            for network, table in ((2, "main"), (3, "101"), (4, "103")):
                gateway = _address(family, network, 2)
                ip(*six, "route", "add", "default", "via", gateway, "table", table)
            everything = "0.0.0.0/0" if family is Family.IPV4 else "::/0"
            ip(*six, "route", "add", "local", everything, "dev", "lo", "table", "100")
            # Exact marks, as most programs use, and masks; the last must match no packet.
            rules = (("0x1", "101"), ("0x2/0xf", "101"), ("0x4", "100"))
            for mark, table in (*rules, (f"{UNJUDGED_MARK:#x}/{UNJUDGED_MARK:#x}", "103")):
                ip(*six, "rule", "add", "fwmark", mark, "lookup", table)

    def load_iptables(self, backend: str) -> None:
        """Load the rules of others into iptables."""
        for family in FAMILIES:
            base = "iptables" if family is Family.IPV4 else "ip6tables"
            text = _MANGLE.format(gateway=_address(family, 4, 2))
            self.host.run(f"{base}-{backend}-restore", "--noflush", "-w", stdin=text)
        self.host.run("nft", "-f", "-", stdin=_AROUND + _observer())

    def load_native(self) -> None:
        """Load the rules of others into nftables."""
        copies = [
            _NATIVE_COPIES.format(table=table, gateway=_address(family, 4, 2))
            for family, table in ((Family.IPV4, "ip"), (Family.IPV6, "ip6"))
        ]
        text = _NATIVE_MANGLE + "".join(copies) + _AROUND + _observer()
        self.host.run("nft", "-f", "-", stdin=text)

    def observe(self, expected: int | None = None) -> list[Seen]:
        """Send all segments, and return those seen, in order for each flow and place."""
        with self.cross() as crossing:
            return crossing.seen(expected)

    @contextmanager
    def cross(self) -> Iterator["Crossing"]:
        """Send all segments."""
        with self._watch() as taps:
            yield Crossing(taps, self._send())

    @contextmanager
    def _watch(self) -> Iterator[list[tuple[str, socket.socket]]]:
        """Taps behind every interface, and a transparent proxy in the host."""
        with ExitStack() as stack:
            taps: list[tuple[str, socket.socket]] = []
            with self._beyond.entered():
                for name in _UPLINKS:
                    tap = stack.enter_context(_tap(f"far{name}"))
                    taps.append((name, tap))
            with self._peer.entered():
                taps.append(("inner", stack.enter_context(_tap("peer"))))
            with self.host.entered():
                for family in FAMILIES:
                    proxy = stack.enter_context(socket.socket(_DOMAINS[family]))
                    if family is Family.IPV6:
                        proxy.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    level, option = (
                        (socket.SOL_IP, 19) if family is Family.IPV4 else (socket.IPPROTO_IPV6, 75)
                    )
                    proxy.setsockopt(level, option, 1)  # IP_TRANSPARENT
                    proxy.bind(("", _PROXY_PORT))
                    proxy.listen()
            yield taps

    def _send(self) -> range:
        """Send every kind of segment a few times, and return the range of sequence numbers."""
        begin = self._serial = self._serial + 10_000
        number = begin
        with ExitStack() as stack:
            raws: dict[tuple[bool, Family], socket.socket] = {}
            for inside, ns in ((False, self._peer), (True, self.host)):
                with ns.entered():
                    for family in FAMILIES:
                        raws[inside, family] = stack.enter_context(
                            socket.socket(_DOMAINS[family], socket.SOCK_RAW, socket.IPPROTO_TCP)
                        )
            kinds: list[tuple[bool, int, int, int]] = []
            kinds += [(False, port, 9, 80) for port in (*_PLAIN, *_RECEIVED)]
            kinds += [(False, 1009, 9, 2443)]  # to the transparent proxy
            kinds += [(False, port, 1, 81) for port in (1000, 1001)]  # to the host, which answers
            kinds += [(True, port, 9, 80) for port in (*_PLAIN, *_SENT)]
            for _ in range(_COPIES):
                for inside, sport, network, dport in kinds:
                    for family in FAMILIES:
                        there = _address(family, network, 1)
                        here = self._source(inside, family)
                        segment = _segment(family, here, there, sport, dport, number)
                        with suppress(PermissionError):  # the error of a rule that drops it
                            raws[inside, family].sendto(segment, (there, 0))
                        number += 1
        return range(begin, number)

    def _source(self, inside: bool, family: Family) -> str:
        return _address(family, 2, 1) if inside else _address(family, 1, 2)


class Crossing:
    """Segments on their way."""

    def __init__(self, taps: list[tuple[str, socket.socket]], sent: range) -> None:
        self._taps = taps
        self._sent = sent

    def seen(self, expected: int | None = None) -> list[Seen]:
        """The segments seen, in order for each flow and place.

        Args:
            expected: The number of segments to wait for; None to wait until none follows.
        """
        seen: list[Seen] = []
        begun = last = time.monotonic()
        while True:
            for place, tap in self._taps:
                for frame in _frames(tap):
                    one = _read(place, frame, self._sent)
                    if one is not None:
                        seen.append(one)
                        last = time.monotonic()
            now = time.monotonic()
            enough = expected is None or len(seen) >= expected or now - begun > _PATIENCE_S
            if enough and now - last > _QUIET_S:
                return sorted(seen, key=lambda one: (one.place, one.family, one.ports))
            time.sleep(0.005)


def _frames(tap: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = tap.recvfrom(4096)
            if kind != _OUTGOING:
                yield frame


def _tap(interface: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    tap.bind((interface, 0x0003))
    tap.setblocking(False)
    return tap


def _segment(family: Family, src: str, dst: str, sport: int, dport: int, seq: int) -> bytes:
    """A SYN+ACK without a SYN, which is INVALID, with a valid checksum."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, seq, 5 << 4, 0x12, 1000, 0, 0)
    ends = b"".join(socket.inet_pton(_DOMAINS[family], one) for one in (src, dst))
    words = struct.unpack(f"!{(len(ends) + 24) // 2}H", ends + struct.pack("!HH", 6, 20) + head)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:16] + struct.pack("!H", ~total & 0xFFFF) + head[18:]


def _read(place: str, frame: bytes, sent: range) -> Seen | None:
    """The segment in a frame; None for others, such as those of an earlier run."""
    family = _ETHERTYPES.get(int.from_bytes(frame[12:14]))
    if family is None:
        return None
    packet = frame[14:]
    if family is Family.IPV4:
        start, protocol, traffic = (packet[0] & 15) * 4, packet[9], packet[1]
    else:
        start, protocol, traffic = 40, packet[6], (packet[0] << 4 | packet[1] >> 4) & 0xFF
    segment = packet[start:]
    if protocol != socket.IPPROTO_TCP or len(segment) < 20:
        return None
    sport, dport, seq = struct.unpack("!HHI", segment[:8])
    if seq not in sent:
        return None
    return Seen(place, family, (sport, dport), seq - sent.start, traffic >> 2)
