# SPDX-License-Identifier: MIT
"""Numbers and addresses as text, and back: one spelling for events, reports and command lines.

A number without a name is written in decimal. The functions that read text raise ValueError for
text that stands for nothing. They accept a number in decimal even if it has a name, which another
release may not have known, and every spelling of an address.
"""

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, Literal

from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_DYING,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    PROTO_GRE,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_SCTP,
    PROTO_TCP,
    PROTO_UDP,
    Direction,
    FlowTuple,
    Hook,
    TcpState,
)
from nfq_guard.wire.packet import Datagram, Malformed, Packet, SctpPacket, Segment

DirectionName = Literal["original", "reply"]
StatusName = Literal["seen-reply", "assured", "dying", "offload"]

_PROTOCOLS: Final = {
    PROTO_ICMP: "icmp",
    PROTO_TCP: "tcp",
    PROTO_UDP: "udp",
    PROTO_GRE: "gre",
    PROTO_ICMPV6: "icmpv6",
    PROTO_SCTP: "sctp",
}
_PROTOCOL_NUMBERS: Final = {name: number for number, name in _PROTOCOLS.items()}
_HOOKS: Final = tuple(member.name for member in Hook)
_STATES: Final = tuple(member.name for member in TcpState)
# In output order, with their bits: SYN first.
_FLAG_LETTERS: Final = "SFRPAUEC"
_FLAG_BITS_OF: Final = dict(zip(_FLAG_LETTERS, (2, 1, 4, 8, 16, 32, 64, 128), strict=True))
_FLAGS: Final = tuple(
    "".join(letter for letter, bit in _FLAG_BITS_OF.items() if flags & bit) for flags in range(256)
)
_FLAG_BITS: Final = {letters: flags for flags, letters in enumerate(_FLAGS)}
# In output order; translation has its own field (`flow.Nat`).
_STATUS_BITS: Final[dict[StatusName, int]] = {
    "seen-reply": IPS_SEEN_REPLY,
    "assured": IPS_ASSURED,
    "dying": IPS_DYING,
    "offload": IPS_OFFLOAD,
}
STATUS_NAMES: Final = tuple(_STATUS_BITS)
_STATUSES: Final = tuple(
    tuple(name for position, name in enumerate(_STATUS_BITS) if number >> position & 1)
    for number in range(1 << len(_STATUS_BITS))
)
_UNKNOWN_HOST: Final = "?"


def protocol(number: int) -> str:
    """An IP protocol: `tcp`."""
    return _PROTOCOLS.get(number, str(number))


def protocol_number(text: str) -> int:
    """The number of an IP protocol."""
    number = _PROTOCOL_NUMBERS.get(text)
    return _number(text, 0xFF) if number is None else number


def hook(number: int) -> str:
    """A netfilter hook: `PREROUTING`."""
    return _HOOKS[number] if number < len(_HOOKS) else str(number)


def hook_number(text: str) -> int:
    """The number of a netfilter hook."""
    return _HOOKS.index(text) if text in _HOOKS else _number(text, 0xFF)


def tcp_flags(flags: int) -> str:
    """TCP flags, the letters SFRPAUEC in this order: `SA` for SYN and ACK, empty for none."""
    return _FLAGS[flags]


def tcp_flag_bits(letters: str) -> int:
    """The bits of TCP flags, each at most once, in any order."""
    bits = _FLAG_BITS.get(letters)
    if bits is None:
        if len(set(letters)) != len(letters) or not set(letters) <= set(_FLAG_LETTERS):
            raise ValueError(f"expected some of {_FLAG_LETTERS}, each once, found {letters!r}")
        bits = sum(_FLAG_BITS_OF[letter] for letter in letters)
    return bits


def tcp_state(number: int) -> str:
    """A TCP state of conntrack: `ESTABLISHED`, `NONE` for 0."""
    return _STATES[number]


def tcp_state_number(text: str) -> int:
    """The number of a TCP state of conntrack."""
    if text not in _STATES:
        raise ValueError(f"expected one of {', '.join(_STATES)}, found {text!r}")
    return _STATES.index(text)


def direction(number: int) -> DirectionName:
    """The direction of a packet in its flow."""
    return "reply" if number == Direction.REPLY else "original"


def direction_number(text: DirectionName) -> int:
    """The number of a direction."""
    return int(Direction.REPLY if text == "reply" else Direction.ORIGINAL)


def flow_status(bits: int) -> tuple[StatusName, ...]:
    """The status of a conntrack entry by name: `("seen-reply", "assured")`; other bits have none.

    Args:
        bits: `IPS_*` bits, as in `FlowSnapshot.status`.
    """
    return _STATUSES[status_number(bits)]


def status_number(bits: int) -> int:
    """The bits of a status that have a name, by position in `STATUS_NAMES`."""
    # Bits 1, 2, 9 and 14.
    return bits >> 1 & 3 | bits >> 7 & 4 | bits >> 11 & 8


def flow_status_bits(names: tuple[StatusName, ...]) -> int:
    """The `IPS_*` bits of a status."""
    bits = 0
    for name in names:
        bits |= _STATUS_BITS[name]
    return bits


def address(packed: bytes) -> str | None:
    """An IP address as text; None if a malformed packet has none."""
    if len(packed) == 4:
        return inet_ntop(AF_INET, packed)
    return inet_ntop(AF_INET6, packed) if len(packed) == 16 else None


def address_bytes(text: str) -> bytes:
    """The 4 or 16 bytes of an IP address."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except OSError:
        raise ValueError(f"expected an IP address, found {text!r}") from None


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 packet`, `2,000 packets`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bytes_of(count: int) -> str:
    """A number of bytes with its unit: `1 byte`, `2000 bytes`, as sequence numbers are written."""
    return "1 byte" if count == 1 else f"{count} bytes"


def visible(text: str) -> str:
    """A text that is safe for a terminal: unprintable characters become escapes as in Python.

    These are control characters, and those that change the direction or the lines of a text. Texts
    from a capture, a recording or the kernel may contain any.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def visible_json(octets: bytes) -> bytes:
    """JSON, in UTF-8, with what is not printable in its texts as escapes of JSON.

    Encoders escape the control characters of ASCII but DEL; others control a terminal too.
    """
    if octets.isascii() and b"\x7f" not in octets:
        return octets
    return b"\n".join(
        "".join(
            letter if letter.isprintable() else _json_escape(letter) for letter in line.decode()
        ).encode()
        for line in octets.split(b"\n")
    )


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def endpoint(host: str | None, port: int | None) -> str:
    """An address and a port: `10.0.0.1:80`, `[fd00::1]:80`; only the address without a port."""
    if host is None:
        host = _UNKNOWN_HOST
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def endpoint_parts(text: str) -> tuple[bytes, int | None]:
    """The address and the port of an endpoint; a port may be missing, empty or `*`: None.

    An IPv6 address must be in brackets, and no other may be: `fd00::1:80` would be read as an
    address without a port.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError(f"expected an IPv6 address in brackets, found {text!r}")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    return address_bytes(host), None if port in {"", "*"} else _number(port, 0xFFFF)


def ports(packet: Packet | Malformed) -> tuple[int | None, int | None]:
    """Source and destination port; None for a protocol without ports."""
    l4 = packet.l4 if isinstance(packet, Packet) else None
    if isinstance(l4, Segment | Datagram | SctpPacket):
        return l4.sport, l4.dport
    return None, None


def packet_ends(packet: Packet | Malformed) -> str:
    """Source and destination of a packet: `10.0.0.1:40000 > 10.0.0.2:80`."""
    sport, dport = ports(packet)
    return f"{endpoint(address(packet.src), sport)} > {endpoint(address(packet.dst), dport)}"


def tuple_ends(flow: FlowTuple) -> str:
    """Source and destination of one direction of a flow; a flow of ICMP or GRE has no ports."""
    if flow.proto in {PROTO_TCP, PROTO_UDP, PROTO_SCTP}:
        source = endpoint(address(flow.src), flow.sport)
        return f"{source} > {endpoint(address(flow.dst), flow.dport)}"
    return f"{endpoint(address(flow.src), None)} > {endpoint(address(flow.dst), None)}"


def _number(text: str, largest: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:6]) > largest or len(text) > 5:
        raise ValueError(f"expected a number up to {largest}, found {text!r}")
    return int(text)
