# SPDX-License-Identifier: MIT
"""Asymmetric routing: healthy packets that are INVALID because the router sees one direction only.

Requests pass the router, answers take another path, and there is no translation. The router has
seen the SYN but never the SYN+ACK, so every further packet from the client is INVALID: in SYN_SENT
the opener must not send an ACK. The packets are valid, and without translation they do no harm;
dropping them breaks the connection. The stray, beyond the server's window, is left to the endpoint:
the server answers it with an ACK.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import (
    Link,
    MakeNamespace,
    Stage,
    join,
    route,
    routing,
    without_path_filter,
)
from nfq_guard.lab.strays import Kind, Stray

_BLOCKED: Final = "it drops every packet from the client after its SYN, although they are valid"

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.SURVIVED, "INVALID packets are forwarded unchanged, as they should be"
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED,
        "the packets are INVALID for another reason than the window, and forwarded",
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.BLOCKED, _BLOCKED),
    Mitigation.DROP_FORWARD: Expectation(Outcome.BLOCKED, _BLOCKED),
    Mitigation.DROP_INPUT: Expectation(
        Outcome.SURVIVED, "the packets are forwarded and never reach INPUT"
    ),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED, "the flow is not translated, so the guard leaves it to the endpoints"
    ),
    Mitigation.GUARD_HEAL: Expectation(
        Outcome.SURVIVED, "the flow is not translated, so the guard leaves it to the endpoints"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.SURVIVED, "the guard would accept these packets in either mode"
    ),
}


class Asymmetric:
    """The scenario that the module describes."""

    name = "asymmetric"
    summary = "the router sees one direction of an untranslated connection, which must survive"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, router and server, and a second path from server to client."""
        client = without_path_filter(make("client"))
        router = routing(make("router"), plan)
        server = without_path_filter(make("server"))
        join(client, "eth0", router, "eth0", plan.outside, (2, 1))
        join(server, "eth0", router, "eth1", plan.far, (2, 1))
        join(client, "eth1", server, "eth1", plan.second_outside, (2, 1))
        route(client, str(plan.far), plan.outside.host(1))
        route(server, str(plan.outside), plan.second_outside.host(2))
        service = (plan.far.host(2), 80)
        return Stage(
            router=router,
            client=client,
            server=server,
            connect_to=service,
            listen_on=service,
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
