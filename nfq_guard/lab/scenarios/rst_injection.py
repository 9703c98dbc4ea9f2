# SPDX-License-Identifier: MIT
"""Two segments forged by a sender that knows the ports, but not the sequence numbers.

A service has two pods. A connection to one of them is idle when a FIN and an RST with arbitrary
sequence numbers arrive, as from the client. No TCP accepts them. Conntrack calls both INVALID,
because they are far beyond the window. With be_liberal it accepts both: the FIN moves the flow to
FIN_WAIT, where an RST above what was acknowledged closes it, and the entry expires within seconds.
The client's next request opens a new entry, which the service translates to the other pod, and that
answers with RST.
"""

import time
from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import (
    Change,
    Link,
    MakeNamespace,
    Stage,
    dnat,
    join,
    route,
    routing,
)
from nfq_guard.lab.strays import Kind, Stray
from nfq_guard.names import endpoint

# The kernel's default is 10 s; shortened, because the trial waits for it.
_CLOSE_S: Final = 1

_NOT_TAKEN: Final = "conntrack calls both INVALID, so that they change nothing"
_DROPPED: Final = "both are INVALID, and dropped"

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(Outcome.SURVIVED, _NOT_TAKEN),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.RESET, "conntrack accepts both and forgets the translation of the connection"
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.SURVIVED, _DROPPED),
    Mitigation.DROP_FORWARD: Expectation(Outcome.SURVIVED, _NOT_TAKEN),
    Mitigation.DROP_INPUT: Expectation(Outcome.SURVIVED, _NOT_TAKEN),
    Mitigation.GUARD: Expectation(Outcome.SURVIVED, _DROPPED),
    Mitigation.GUARD_HEAL: Expectation(
        Outcome.SURVIVED, "both are too far from the window for a heal, and dropped"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(Outcome.SURVIVED, _NOT_TAKEN),
}


class RstInjection:
    """The scenario that the module describes."""

    name = "rst-injection"
    summary = "a forged FIN and RST with arbitrary numbers, which be_liberal accepts"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, node, and one namespace with the addresses of both pods."""
        client, node, pods = make("client"), routing(make("node"), plan), make("pods")
        join(client, "eth0", node, "eth0", plan.outside, (2, 1))
        join(pods, "eth0", node, "cni0", plan.pods, (2, 1))
        pods.ip("addr", "add", plan.pods.interface(3), "dev", "eth0")
        route(client, "default", plan.outside.host(1))
        route(pods, "default", plan.pods.host(1))
        node.sysctl("netfilter.nf_conntrack_tcp_timeout_close", _CLOSE_S)
        service = plan.services.host(10)
        one, other = ((plan.pods.host(number), 8080) for number in (2, 3))
        every_second = "-m statistic --mode nth --every 2 --packet 0 -j DNAT"
        rules = (
            dnat(service, endpoint(*one)).replace("-j DNAT", every_second),
            dnat(service, endpoint(*other)),
        )
        forged = (
            Stray(kind=kind, sender=client, tap="outer", from_client=True)
            for kind in (Kind.FORGED_FIN, Kind.FORGED_RST)
        )
        return Stage(
            router=node,
            client=client,
            server=pods,
            connect_to=(service, 80),
            listen_on=one,
            extra_listener=other,
            nat="\n".join(rules),
            links=(
                Link(label="inner", namespace=node, interface="cni0"),
                Link(label="outer", namespace=node, interface="eth0"),
            ),
            strays=(*forged, Change(lambda: time.sleep(_CLOSE_S + 1.5))),
            outer="outer",
            hidden=((one[0], None), (other[0], None)),
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
