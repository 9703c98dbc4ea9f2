# SPDX-License-Identifier: MIT
"""Ranges of addresses and ports, as iptables and nft write them in a rule."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address


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
