# SPDX-License-Identifier: MIT
"""A path MTU error whose connection the router has never seen.

Client and server talk past the router, over a hop whose link to the client takes smaller packets
than the server's. The hop's error (ICMP fragmentation needed, ICMPv6 packet too big) takes another
way to the server, through the router. Conntrack there knows no such connection, so that the error
is INVALID. If it is dropped, the server never learns the path MTU, and none of its long segments
arrives.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import Link, MakeNamespace, Stage, join, route, routing

_MTU: Final = "1300"
_REPLY_BYTES: Final = 20_000

_BLOCKED: Final = Expectation(
    Outcome.BLOCKED, "it drops the error, and the server sends segments that are too long for ever"
)
_FORWARDED: Final = Expectation(Outcome.SURVIVED, "the error is forwarded")
_ALLOWED: Final = Expectation(
    Outcome.SURVIVED, "the error is of no translated flow, so the guard lets it pass"
)

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: _FORWARDED,
    Mitigation.BE_LIBERAL: _FORWARDED,
    Mitigation.DROP_PREROUTING: _BLOCKED,
    Mitigation.DROP_FORWARD: _BLOCKED,
    Mitigation.DROP_INPUT: _FORWARDED,
    Mitigation.GUARD: _ALLOWED,
    Mitigation.GUARD_HEAL: _ALLOWED,
    Mitigation.GUARD_DRY_RUN: _ALLOWED,
}


class PathMtu:
    """The scenario that the module describes."""

    name = "path-mtu"
    summary = "a path MTU error takes a path on which its connection was never seen"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, hop and server in a row; the router connects hop and server once more."""
        client, server = make("client"), make("server")
        hop, router = routing(make("hop"), plan), routing(make("router"), plan)
        join(client, "eth0", hop, "eth0", plan.outside, (2, 1))
        join(server, "eth0", hop, "eth1", plan.far, (2, 1))
        join(hop, "eth2", router, "eth0", plan.lan, (2, 1))
        join(server, "eth1", router, "eth1", plan.pods, (2, 1))
        hop.ip("link", "set", "eth0", "mtu", _MTU)
        route(client, "default", plan.outside.host(1))
        route(server, "default", plan.far.host(1))
        route(router, plan.far.host(2), plan.pods.host(2))
        # Packets that the hop itself sends.
        family = f"-{plan.family}"
        hop.ip(family, "rule", "add", "iif", "lo", "to", plan.far.host(2), "lookup", "100")
        hop.ip(family, "route", "add", plan.far.host(2), "via", plan.lan.host(1), "table", "100")
        service = (plan.far.host(2), 80)
        return Stage(
            router=router,
            client=client,
            server=server,
            connect_to=service,
            listen_on=service,
            nat="",
            links=(
                Link(label="direct", namespace=client, interface="eth0"),
                Link(label="router", namespace=router, interface="eth0"),
            ),
            strays=(),
            reply_bytes=_REPLY_BYTES,
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
