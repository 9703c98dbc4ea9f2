# SPDX-License-Identifier: MIT
"""The client's RST to the pod's own address, after a reply that went around the node.

The reply of `kube-proxy-dnat` does not pass the node that translates the connection but another
one, which knows nothing of it, so the client receives it with the pod's own address. The same
happens if the node itself forwarded it, because nothing dropped it. The client has no connection to
the pod and answers with an RST that carries exactly the sequence number that the pod expects next.

That RST does pass the node. Its addresses are the client's and the pod's, and the connection that
the node knows goes from the client to the service: conntrack finds no entry, makes none for an RST,
and calls it INVALID. It is forwarded, and the pod's healthy connection dies.

The default policy lets it pass: without an entry it is like the RST of a client that talks to the
pod directly, which must reach the pod. Where clients reach the pods only by a service, a rule that
names the pods' network drops it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import (
    MakeNamespace,
    Stage,
    join,
    route,
    routing,
    without_path_filter,
)
from nfq_guard.lab.scenarios.kube_proxy_dnat import network
from nfq_guard.lab.strays import Kind, Stray

_DROPPED: Final = "the RST is dropped, and the pod never sees it"
_ALLOWED: Final = Expectation(
    Outcome.RESET,
    "the RST has no entry and so no trace of a translation: the default policy allows it, as is "
    "right for a client that talks to the pod directly; a rule that names the pods' network drops "
    "it",
)

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(Outcome.RESET, "the RST is forwarded, and hits the pod"),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.RESET, "the RST is INVALID for want of an entry, not of a window, and forwarded"
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.SURVIVED, _DROPPED),
    Mitigation.DROP_FORWARD: Expectation(Outcome.SURVIVED, _DROPPED),
    Mitigation.DROP_INPUT: Expectation(
        Outcome.RESET, "the RST is forwarded and never reaches INPUT"
    ),
    Mitigation.GUARD: _ALLOWED,
    Mitigation.GUARD_HEAL: _ALLOWED,
    Mitigation.GUARD_DRY_RUN: _ALLOWED,
}


class PodReset:
    """The scenario that the module describes."""

    name = "pod-reset"
    summary = "a client's RST to the pod itself, after a reply that another node let pass"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, node and pod, and another node that hands the client a reply."""
        stage = network(make, plan, None)
        other = routing(make("other"), plan)
        without_path_filter(stage.client)
        join(stage.client, "eth1", other, "eth0", plan.second_outside, (2, 1))
        reply = Stray(kind=Kind.SEQ_OVER, sender=other, tap="inner", from_client=False)
        route(other, plan.outside.host(2), plan.second_outside.host(2))
        return replace(stage, strays=(reply,))

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel: none has an entry for the RST."""
        del kernel
        return EXPECTED
