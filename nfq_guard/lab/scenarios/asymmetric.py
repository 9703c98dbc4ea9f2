# SPDX-License-Identifier: MIT
"""Asymmetric routing: healthy packets that are INVALID because the router sees one half.

Requests go through the router, answers take another way, and nobody translates anything. The
router has seen the SYN but never the SYN+ACK, so every further packet of the client is INVALID:
an ACK of the opener has no place in SYN_SENT. Nothing is wrong with these packets, and without
translation nothing goes wrong with them either; whoever drops them breaks the connection. The
stray, beyond the server's window, is the endpoint's to judge: the server answers it with an ACK.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import (
    Link,
    MakeNamespace,
    Stage,
    join,
    routing,
    without_path_filter,
)
from nfq_guard.lab.strays import Kind, Stray

_CLIENT: Final = "10.1.0.2"
_SERVER: Final = "10.2.0.2"

_BLOCKED: Final = (
    "it drops all that the client sends after its SYN, though nothing is wrong with it"
)

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.SURVIVED, "an INVALID packet is forwarded as it is, and as it is it is right"
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED, "the packets stay INVALID, for it is not the window, and are forwarded"
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.BLOCKED, _BLOCKED),
    Mitigation.DROP_FORWARD: Expectation(Outcome.BLOCKED, _BLOCKED),
    Mitigation.DROP_INPUT: Expectation(
        Outcome.SURVIVED, "the packets are forwarded and never come to INPUT"
    ),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED, "the flow is not translated, so the guard leaves it to its ends"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.SURVIVED, "the guard would let these packets pass, and does"
    ),
}


class Asymmetric:
    """See the module."""

    name = "asymmetric"
    summary = "the router sees one half of an untranslated connection; nothing may be harmed"

    def build(self, make: MakeNamespace) -> Stage:
        """Client, router, server, and a second way from server to client."""
        client = without_path_filter(make("client"))
        router = routing(make("router"))
        server = without_path_filter(make("server"))
        join(client, "eth0", router, "eth0", f"{_CLIENT}/24", "10.1.0.1/24")
        join(server, "eth0", router, "eth1", f"{_SERVER}/24", "10.2.0.1/24")
        join(client, "eth1", server, "eth1", "10.3.0.2/24", "10.3.0.1/24")
        client.ip("route", "add", "10.2.0.0/24", "via", "10.1.0.1")
        server.ip("route", "add", "10.1.0.0/24", "via", "10.3.0.2")
        return Stage(
            router=router,
            client=client,
            server=server,
            connect_to=(_SERVER, 80),
            listen_on=(_SERVER, 80),
            nat="",
            links=(
                Link(label="ends", namespace=client, interface=None),
                Link(label="router", namespace=router, interface="eth0"),
            ),
            strays=(Stray(kind=Kind.SEQ_OVER, sender=client, tap="ends", from_client=True),),
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
