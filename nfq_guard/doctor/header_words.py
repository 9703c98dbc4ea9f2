# SPDX-License-Identifier: MIT
"""Conditions on the header and on interfaces, as iptables and nft write them in a rule."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple, TypeAlias, final

Address: TypeAlias = IPv4Address | IPv6Address

_IPTABLES: Final = re.compile(r"(?P<not>! )?(?P<name>--?[a-z-]+) (?P<value>\S+)(?: (?P<more>\S+))?")
_NFT: Final = re.compile(
    r"(?:(?:ip6?|tcp|sctp|th) )?(?P<name>[sd]addr|[sd]port|[io]if(?:name)?) "
    r"(?P<not>!= )?(?P<value>\{ .* \}|\S+)(?P<more>)"
)


@final
class HeaderWord(NamedTuple):
    """A condition, taken apart.

    Attributes:
        name: The option of iptables, or the field of nft without its protocol.
        parts: Its values.
        negated: Whether all other values are meant.
        more: A second value of an option; empty without one.
    """

    name: str
    parts: tuple[str, ...]
    negated: bool
    more: str


def split(word: str) -> HeaderWord | None:
    """Take a condition apart, as `Condition.on` has it; None if it has another form."""
    match = _IPTABLES.fullmatch(word) or _NFT.fullmatch(word)
    if match is None:
        return None
    parts = tuple(match["value"].strip("{ }").replace(" ", "").split(","))
    return HeaderWord(match["name"], parts, match["not"] is not None, match["more"] or "")


def addresses(part: str) -> tuple[Address, Address]:
    """The first and the last address of a range such as `10.0.0.0/8` or `10.0.0.1-10.0.0.9`.

    Raises:
        ValueError: It is none, such as the name of a set.
    """
    low, dash, high = part.partition("-")
    if dash:
        return ip_address(low), ip_address(high)
    network = ip_network(part, strict=False)
    return network.network_address, network.broadcast_address


def ports(part: str) -> tuple[int, int]:
    """The first and the last port of a range such as `80:90` or `80-90`.

    Raises:
        ValueError: It is none, such as the name of a set.
    """
    low, _, high = part.replace("-", ":").partition(":")
    return int(low or "0"), int(high or low)
