# SPDX-License-Identifier: MIT
"""Conntrack misses valid packets of a live flow, and calls the answers to them INVALID.

A client reaches a service through one of two gateways, which both translate to the same server. In
the middle of the connection its route changes to the second one, whose conntrack picks the flow up
(tcp_loose=1). The server still answers through the first. There conntrack misses all that the
client sends, so that each answer acknowledges data that conntrack has not seen (ACK over the upper
bound). The window never recovers: a rule that drops all INVALID packets blocks the connection.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import (
    Change,
    Link,
    MakeNamespace,
    Stage,
    join,
    routing,
    without_path_filter,
)

_CLIENT: Final = "192.0.2.2"
_SERVER: Final = "10.244.0.2"
_SERVICE: Final = "10.96.0.10"
_DNAT: Final = (
    f"-A PREROUTING -d {_SERVICE} -p tcp --dport 80 -j DNAT --to-destination {_SERVER}:8080"
)

_RESET: Final = (
    "the answer reaches the client with the server's address, and its RST hits the server"
)
_BLOCKED: Final = "it drops every answer, however often the server sends it again"

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(Outcome.RESET, _RESET),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED, "no window is checked, of no flow on the whole host"
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.BLOCKED, _BLOCKED),
    Mitigation.DROP_FORWARD: Expectation(Outcome.BLOCKED, _BLOCKED),
    Mitigation.DROP_INPUT: Expectation(Outcome.RESET, _RESET),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED,
        "the same answer again is healed: the server's window is no longer checked in this flow",
    ),
    Mitigation.GUARD_HEAL: Expectation(
        Outcome.SURVIVED, "the first answer is healed, and its retransmission passes"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.RESET, "dry-run only records that the answer would be dropped"
    ),
}


class BrokenWindowTracking:
    """The scenario that the module describes."""

    name = "broken-window-tracking"
    summary = "conntrack misses what a client sends, and calls the answers INVALID"

    def build(self, make: MakeNamespace) -> Stage:
        """Client and server, and two gateways between them."""
        client = without_path_filter(make("client"))
        router, second = routing(make("router")), routing(make("second"))
        server = without_path_filter(make("server"))
        join(client, "eth0", router, "eth0", f"{_CLIENT}/24", "192.0.2.1/24")
        join(server, "eth0", router, "cni0", f"{_SERVER}/24", "10.244.0.1/24")
        join(client, "eth1", second, "eth0", "198.51.100.2/24", "198.51.100.1/24")
        join(server, "eth1", second, "cni0", "10.245.0.2/24", "10.245.0.1/24")
        client.ip("route", "add", "default", "via", "192.0.2.1")
        server.ip("route", "add", "default", "via", "10.244.0.1")
        second.ip("route", "add", f"{_SERVER}/32", "via", "10.245.0.2")
        second.run("iptables-restore", "-w", stdin=f"*nat\n{_DNAT}\nCOMMIT\n")

        def change_route() -> None:
            client.ip("route", "replace", "default", "via", "198.51.100.1")

        return Stage(
            router=router,
            client=client,
            server=server,
            connect_to=(_SERVICE, 80),
            listen_on=(_SERVER, 8080),
            nat=_DNAT,
            links=(
                Link(label="inner", namespace=router, interface="cni0"),
                Link(label="outer", namespace=router, interface="eth0"),
            ),
            strays=(Change(change_route),),
            outer="outer",
            hidden=((_SERVER, None),),
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """ACK over the bound is INVALID on all kernels; old ones do not show the window."""
        if kernel.old_segments_pass:
            return EXPECTED
        unhealed = Expectation(
            Outcome.BLOCKED,
            "without the window nothing is healed; after three seconds the answer passes and ends "
            "the connection, as without the guard",
        )
        return {**EXPECTED, Mitigation.GUARD: unhealed, Mitigation.GUARD_HEAL: unhealed}
