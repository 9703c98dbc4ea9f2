# SPDX-License-Identifier: MIT
"""The classic: a reply of a Kubernetes service escapes its translation.

A client connects to the virtual address of a service. The node translates it to a pod (DNAT), and
translates the pod's replies back. One reply lies more than a receiver window beyond the window that
the client has offered. Conntrack on the node calls it INVALID (SEQ over the upper bound), so it is
not translated back but forwarded with the pod's own address. The client has no such connection and
answers the pod with an RST that carries exactly the sequence number that the pod expects next. The
pod's healthy connection dies, and the client's next request fails.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import Link, MakeNamespace, Stage, dnat, join, route, routing
from nfq_guard.lab.strays import Kind, Stray
from nfq_guard.names import endpoint

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.RESET,
        "the reply reaches the client with the pod's address, and the client's RST hits the pod",
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED, "no window is checked, so the reply is translated like any other"
    ),
    Mitigation.DROP_PREROUTING: Expectation(
        Outcome.SURVIVED, "the reply is dropped before it is routed"
    ),
    Mitigation.DROP_FORWARD: Expectation(
        Outcome.SURVIVED, "the reply is forwarded, and dropped there"
    ),
    Mitigation.DROP_INPUT: Expectation(
        Outcome.RESET, "the reply is forwarded and never reaches INPUT"
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


def network(
    make: MakeNamespace,
    plan: Plan,
    kind: Kind | None,
    *,
    reply_bytes: int = 1_000,
    client_rcvbuf: int = 0,
) -> Stage:
    """Client, node and pod, with one stray from the pod, or none."""
    client, node = make("client"), routing(make("node"), plan)
    join(client, "eth0", node, "eth0", plan.outside, (2, 1))
    route(client, "default", plan.outside.host(1))
    stage = service(make, plan, client, node)
    sender = stage.server
    strays = (Stray(kind=kind, sender=sender, tap="inner", from_client=False),) if kind else ()
    return replace(stage, strays=strays, reply_bytes=reply_bytes, client_rcvbuf=client_rcvbuf)


def service(make: MakeNamespace, plan: Plan, client: Namespace, node: Namespace) -> Stage:
    """A pod behind the node, which a client reaches by the address of a service; no strays."""
    pod = make("pod")
    join(pod, "eth0", node, "cni0", plan.pods, (2, 1))
    route(pod, "default", plan.pods.host(1))
    address, listening = plan.services.host(10), (plan.pods.host(2), 8080)
    return Stage(
        router=node,
        client=client,
        server=pod,
        connect_to=(address, 80),
        listen_on=listening,
        nat=dnat(address, endpoint(*listening)),
        links=(
            Link(label="inner", namespace=node, interface="cni0"),
            Link(label="outer", namespace=node, interface="eth0"),
        ),
        strays=(),
        outer="outer",
        hidden=((listening[0], None),),
    )


class KubeProxyDnat:
    """The scenario that the module describes."""

    name = "kube-proxy-dnat"
    summary = "reply of a DNATed service flow is forwarded with the pod's own address"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, node, pod."""
        return network(make, plan, Kind.SEQ_OVER)

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel: SEQ over the bound is INVALID on all of them."""
        del kernel
        return EXPECTED
