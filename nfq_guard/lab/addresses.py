# SPDX-License-Identifier: MIT
"""The addresses of the lab, as one plan for each family.

Networks and hosts have the same names in both plans, so a scenario is written once.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal

from nfq_guard.flow import IPV4, IPV6

Family = Literal[4, 6]


@dataclass(frozen=True, slots=True)
class Network:
    """A network whose hosts are known by their numbers.

    Attributes:
        prefix: Its address and length.
    """

    prefix: IPv4Network | IPv6Network

    def host(self, number: int) -> str:
        """The address of a host, such as `10.244.0.2`."""
        return str(self.prefix[number])

    def interface(self, number: int) -> str:
        """The address of a host with the length of the prefix, such as `10.244.0.2/24`."""
        return f"{self.host(number)}/{self.prefix.prefixlen}"

    def __str__(self) -> str:
        """The prefix, such as `10.244.0.0/24`."""
        return str(self.prefix)


def _network(text: str) -> Network:
    return Network(ip_network(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The networks of one family.

    Attributes:
        family: 4 or 6.
        outside: The network of clients, and the external network of a host.
        second_outside: A second path to the clients.
        far: The network of servers to which a gateway's clients connect.
        lan: The network of a gateway's clients.
        pods: The network of pods.
        second_pods: A second path to the pods.
        services: Virtual addresses, reachable only through translation.
        bridge: The network of containers.
    """

    family: Family
    outside: Network
    second_outside: Network
    far: Network
    lan: Network
    pods: Network
    second_pods: Network
    services: Network
    bridge: Network

    @property
    def iptables(self) -> str:
        """`iptables` or `ip6tables`."""
        return "iptables" if self.family == IPV4 else "ip6tables"


PLANS: Final[dict[Family, Plan]] = {
    IPV4: Plan(
        family=IPV4,
        outside=_network("192.0.2.0/24"),
        second_outside=_network("198.51.100.0/24"),
        far=_network("203.0.113.0/24"),
        lan=_network("10.0.0.0/24"),
        pods=_network("10.244.0.0/24"),
        second_pods=_network("10.245.0.0/24"),
        services=_network("10.96.0.0/24"),
        bridge=_network("172.17.0.0/16"),
    ),
    IPV6: Plan(
        family=IPV6,
        outside=_network("2001:db8:2::/64"),
        second_outside=_network("2001:db8:51::/64"),
        far=_network("2001:db8:113::/64"),
        lan=_network("fd00::/64"),
        pods=_network("fd00:244::/64"),
        second_pods=_network("fd00:245::/64"),
        services=_network("fd00:96::/64"),
        bridge=_network("fd00:172::/64"),
    ),
}
