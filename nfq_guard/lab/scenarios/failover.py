# SPDX-License-Identifier: MIT
"""A connection moves to another gateway, whose conntrack has never seen it.

Two gateways translate the same service to the same server. In the middle of a connection its route
changes to the second one, in both directions. Conntrack there picks the connection up at a segment
of the client (tcp_loose=1). It has not seen the window scale, and therefore does not check the
connection's windows: a segment far beyond the window is translated like any other. An old RST of
the server fails another check, which needs no window, and is INVALID: it leaves with the server's
own address.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import Change, Link, MakeNamespace, Stage
from nfq_guard.lab.scenarios.two_gateways import TwoGateways
from nfq_guard.lab.strays import Kind, Stray

_LEAKED: Final = "the old RST is forwarded with the server's own address"
_DROPPED: Final = "the old RST is dropped"
_TRANSLATED: Final = "the old RST belongs to a translated flow, so the guard drops it"

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(Outcome.LEAKED, _LEAKED),
    Mitigation.BE_LIBERAL: Expectation(Outcome.LEAKED, _LEAKED),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.SURVIVED, _DROPPED),
    Mitigation.DROP_FORWARD: Expectation(Outcome.SURVIVED, _DROPPED),
    Mitigation.DROP_INPUT: Expectation(Outcome.LEAKED, _LEAKED),
    Mitigation.GUARD: Expectation(Outcome.SURVIVED, _TRANSLATED),
    Mitigation.GUARD_HEAL: Expectation(Outcome.SURVIVED, _TRANSLATED),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.LEAKED, "dry-run only records that the old RST would be dropped"
    ),
}


class Failover:
    """The scenario that the module describes."""

    name = "failover"
    summary = "another gateway takes a connection over, and knows no window of it"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client and server, and two gateways between them; the second one is tested."""
        network = TwoGateways.build(make, plan, "first", "router")
        network.translate(network.first)
        router = network.second
        strays = (
            Stray(kind=kind, sender=network.server, tap="ends", from_client=False)
            for kind in (Kind.SEQ_OVER, Kind.STALE_RST)
        )
        return Stage(
            router=router,
            client=network.client,
            server=network.server,
            connect_to=network.service,
            listen_on=network.listening,
            nat=network.translation,
            links=(
                Link(label="ends", namespace=network.server, interface=None),
                Link(label="outer", namespace=router, interface="eth0"),
            ),
            strays=(Change(network.move_both), *strays),
            outer="outer",
            hidden=((network.listening[0], None),),
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
