# SPDX-License-Identifier: MIT
"""A Docker host connects to its own published port through its external address.

The connection never leaves the host: OUTPUT translates the external address and port to the
container's (DNAT), the container answers to the external address, and the reply comes in through
the bridge. A reply beyond the window is INVALID, so it is not translated back but delivered to the
host with the container's address. The host has no such socket and answers the container with an
RST, which kills its connection. No packet is forwarded, so a rule in FORWARD matches nothing.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import Link, MakeNamespace, Stage, dnat, join, route, routing
from nfq_guard.lab.strays import Kind, Stray
from nfq_guard.names import endpoint

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.RESET,
        "the reply reaches the host with the container's address, and the host answers with RST",
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED, "no window is checked, so the reply is translated like any other"
    ),
    Mitigation.DROP_PREROUTING: Expectation(
        Outcome.SURVIVED, "the reply is dropped as it comes in from the container"
    ),
    Mitigation.DROP_FORWARD: Expectation(
        Outcome.RESET, "the reply is delivered to the host, not forwarded"
    ),
    Mitigation.DROP_INPUT: Expectation(
        Outcome.SURVIVED, "the reply is dropped before the host's TCP sees it"
    ),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED, "the reply belongs to a translated flow, so the guard drops it"
    ),
    Mitigation.GUARD_HEAL: Expectation(
        Outcome.SURVIVED, "the reply belongs to a translated flow, so the guard drops it"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.RESET, "dry-run only records that the reply would be dropped"
    ),
}


class MobyHairpin:
    """The scenario that the module describes."""

    name = "moby-hairpin"
    summary = "a host connects to its own published port through its external address"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """A host with a container, and a neighbour that gives the host an external link."""
        host = routing(make("host"), plan)
        container, neighbour = make("container"), make("neighbour")
        join(host, "eth0", neighbour, "eth0", plan.outside, (10, 1))
        join(host, "docker0", container, "eth0", plan.bridge, (1, 2))
        route(container, "default", plan.bridge.host(1))
        external, listening = plan.outside.host(10), (plan.bridge.host(2), 80)
        return Stage(
            router=host,
            client=host,
            server=container,
            connect_to=(external, 8080),
            listen_on=listening,
            nat="\n".join(
                dnat(external, endpoint(*listening), chain=chain, port=8080)
                for chain in ("PREROUTING", "OUTPUT")
            ),
            links=(
                Link(label="inner", namespace=host, interface="docker0"),
                Link(label="outer", namespace=host, interface="eth0"),
            ),
            strays=(Stray(kind=Kind.SEQ_OVER, sender=container, tap="inner", from_client=False),),
            outer="outer",
            hidden=((listening[0], None),),
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel: SEQ over the bound is INVALID on all of them."""
        del kernel
        return EXPECTED
