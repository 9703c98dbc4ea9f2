# SPDX-License-Identifier: MIT
"""Conntrack misses valid packets of a live flow, and calls the answers to them INVALID.

A client reaches a service through one of two gateways, which both translate to the same server. In
the middle of the connection its route changes to the second one, whose conntrack picks the flow up
(tcp_loose=1). The server still answers through the first. Conntrack there misses everything that
the client sends, so each answer acknowledges data that conntrack has not seen (ACK over the upper
bound). The window never recovers: a rule that drops all INVALID packets blocks the connection.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import RUNNING_KERNEL, Change, Link, MakeNamespace, Stage
from nfq_guard.lab.scenarios.two_gateways import TwoGateways

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

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client and server, and two gateways between them; the first one is tested."""
        network = TwoGateways.build(make, plan, "router", "second")
        network.translate(network.second)
        router = network.first
        return Stage(
            router=router,
            client=network.client,
            server=network.server,
            connect_to=network.service,
            listen_on=network.listening,
            nat=network.translation,
            links=(
                Link(label="inner", namespace=router, interface="cni0"),
                Link(label="outer", namespace=router, interface="eth0"),
            ),
            strays=(Change(network.move_client),),
            outer="outer",
            hidden=((network.listening[0], None),),
            # Shorter than the time after which a kernel of `unhealed` accepts the answer.
            answer_limit_s=None if RUNNING_KERNEL.old_segments_pass else 1.0,
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
