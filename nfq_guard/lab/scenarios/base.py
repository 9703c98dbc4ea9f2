# SPDX-License-Identifier: MIT
"""The parts of a scenario."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from nfq_guard.conntrack.kernel_rules import KernelRules, rules_of
from nfq_guard.flow import IPV6
from nfq_guard.lab.addresses import Network, Plan
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.outcome import Expectations
from nfq_guard.lab.strays import Stray
from nfq_guard.lab.wiretap import Address, announce_carrier, checksums_in_software

MakeNamespace = Callable[[str], Namespace]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface to capture; None for all interfaces of the namespace."""

    label: str
    namespace: Namespace
    interface: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the network while the connection is open."""

    make: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A complete network, ready for a connection.

    Attributes:
        router: The namespace whose conntrack and packet filter are tested.
        client: Namespace of the client.
        server: Namespace of the server.
        connect_to: Address that the client connects to.
        listen_on: Address that the server listens on.
        nat: The body of the router's nat table for iptables-restore; may be empty.
        links: The links to capture.
        strays: The segments to send into the live connection, and the changes of the network, in
            order.
        outer: Label of the link on which no source in `hidden` may appear; None if there is none.
        hidden: Sources that translation hides: an address, and a port or None for any port.
        extra_listener: A second address in the server's namespace with its own listener.
        reply_bytes: Size of an answer.
        client_rcvbuf: Receive buffer of the client in bytes; 0 for the kernel's default.
        is_fast_open: Whether the client's SYN carries its first request.
        answer_limit_s: Time that the client waits for an answer, in seconds; None for a limit that
            depends on the speed of the machine.
    """

    router: Namespace
    client: Namespace
    server: Namespace
    connect_to: Address
    listen_on: Address
    nat: str
    links: tuple[Link, ...]
    strays: tuple[Stray | Change, ...]
    outer: str | None = None
    hidden: tuple[tuple[str, int | None], ...] = ()
    extra_listener: Address | None = None
    reply_bytes: int = 1_000
    client_rcvbuf: int = 0
    is_fast_open: bool = False
    answer_limit_s: float | None = None


class Scenario(Protocol):
    """One situation in which INVALID packets do harm, or are believed to."""

    name: str
    summary: str

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Build the network with namespaces from `make`, whose caller removes them."""

    def expected(self, kernel: KernelRules) -> Expectations:
        """The expected outcome under each mitigation, on a kernel with these rules."""


RUNNING_KERNEL: Final = rules_of(platform.release())


def routing(namespace: Namespace, plan: Plan) -> Namespace:
    """Enable forwarding and disable reverse path filtering; returns `namespace`."""
    namespace.sysctl("ipv6.conf.all.forwarding" if plan.family == IPV6 else "ipv4.ip_forward", 1)
    return without_path_filter(namespace)


def without_path_filter(namespace: Namespace) -> Namespace:
    """Disable reverse path filtering, for asymmetric paths; returns `namespace`.

    IPv6 has none.
    """
    namespace.sysctl("ipv4.conf.all.rp_filter", 0)
    namespace.sysctl("ipv4.conf.default.rp_filter", 0)
    return namespace


def join(
    left: Namespace,
    left_name: str,
    right: Namespace,
    right_name: str,
    network: Network,
    hosts: tuple[int, int],
) -> None:
    """Connect two namespaces by a link with complete checksums.

    Args:
        left: One namespace.
        left_name: Its interface.
        right: The other namespace.
        right_name: Its interface.
        network: The network of the link.
        hosts: The numbers of `left` and `right` in it.
    """
    if network.prefix.version == IPV6:
        # A router can solicit a neighbour only when its link-local address is no longer tentative.
        for namespace in (left, right):
            namespace.sysctl("ipv6.conf.default.accept_dad", 0)
    here, there = (network.interface(number) for number in hosts)
    veth(left, left_name, right, right_name, (here, there))
    for namespace, name in ((left, left_name), (right, right_name)):
        checksums_in_software(namespace, name)
        if network.prefix.version == IPV6:
            # Otherwise the SYN waits for neighbour discovery, TCP takes that as the round-trip
            # time, and does not retransmit for two seconds.
            announce_carrier(namespace, name)


def route(namespace: Namespace, destination: str, via: str, *, is_better: bool = False) -> None:
    """Route `destination`, a prefix or `default`, through the host `via`.

    The new route has precedence over an existing one, which stays. If a route were deleted, a
    connection that uses it could briefly take 68 as its MTU and send very small segments.
    """
    words = ("route", "add", destination, "via", via, "metric", "100" if is_better else "200")
    namespace.ip("-6" if ":" in via else "-4", *words)


def dnat(service: str, target: str, *, chain: str = "PREROUTING", port: int = 80) -> str:
    """The rule that translates a service's address and port to `target`, an endpoint."""
    return f"-A {chain} -d {service} -p tcp --dport {port} -j DNAT --to-destination {target}"
