# SPDX-License-Identifier: MIT
"""What a scenario is made of."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from nfq_guard.conntrack.kernel_rules import KernelRules, rules_of
from nfq_guard.lab.netns import Namespace, veth
from nfq_guard.lab.outcome import Expectations
from nfq_guard.lab.strays import Stray
from nfq_guard.lab.wiretap import Address, checksums_in_software

MakeNamespace = Callable[[str], Namespace]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface to listen on; None for all of the namespace."""

    label: str
    namespace: Namespace
    interface: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A network, built and waiting for a connection.

    Attributes:
        router: The namespace whose conntrack and packet filter are on trial.
        client: Where the client runs.
        server: Where the server runs.
        connect_to: What the client connects to.
        listen_on: What the server listens on.
        nat: The body of the router's nat table for iptables-restore; may be empty.
        links: Where to listen.
        strays: The segments to send into the live connection, in order.
        outer: Label of the link on which no address of `hidden` may appear; None if there is none.
        hidden: Sources that translation hides: an address, with a port where the port counts.
        extra_listener: A second address in the server's namespace that somebody else listens on.
        reply_octets: Size of an answer.
        client_rcvbuf: Receive buffer of the client in octets; 0 leaves the kernel's.
    """

    router: Namespace
    client: Namespace
    server: Namespace
    connect_to: Address
    listen_on: Address
    nat: str
    links: tuple[Link, ...]
    strays: tuple[Stray, ...]
    outer: str | None = None
    hidden: tuple[tuple[str, int | None], ...] = ()
    extra_listener: Address | None = None
    reply_octets: int = 1_000
    client_rcvbuf: int = 0


class Scenario(Protocol):
    """One way in which an INVALID packet does harm, or is feared to."""

    name: str
    summary: str

    def build(self, make: MakeNamespace) -> Stage:
        """Build the network with namespaces from `make`, which also removes them."""

    def expected(self, kernel: KernelRules) -> Expectations:
        """What should come of it under each mitigation, on such a kernel."""


RUNNING_KERNEL: Final = rules_of(platform.release())


def routing(namespace: Namespace) -> Namespace:
    """`namespace`, made to forward, without the reverse path filter."""
    namespace.sysctl("ipv4.ip_forward", 1)
    return without_path_filter(namespace)


def without_path_filter(namespace: Namespace) -> Namespace:
    """`namespace`, made to take packets that come in by another interface than they went out."""
    namespace.sysctl("ipv4.conf.all.rp_filter", 0)
    namespace.sysctl("ipv4.conf.default.rp_filter", 0)
    return namespace


def join(
    left: Namespace, left_name: str, right: Namespace, right_name: str, here: str, there: str
) -> None:
    """Join two namespaces by a link that carries whole checksums; addresses as `10.0.0.1/24`."""
    veth(left, left_name, right, right_name, (here, there))
    checksums_in_software(left, left_name)
    checksums_in_software(right, right_name)
