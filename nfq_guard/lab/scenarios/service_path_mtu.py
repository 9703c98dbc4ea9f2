# SPDX-License-Identifier: MIT
"""A path MTU error about a translated connection.

A client reaches a pod by the address of a service (DNAT), over a hop whose link to the client takes
smaller packets than the pod's. The hop sends its error (ICMP fragmentation needed, ICMPv6 packet
too big) to the service's address, because the long segment came from there. Conntrack on the node
knows the segment that the error quotes: the error is RELATED, not INVALID, and is translated back
to the pod. No remedy for INVALID packets touches it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios import kube_proxy_dnat
from nfq_guard.lab.scenarios.base import MakeNamespace, Stage, join, route, routing

_MTU: Final = "1300"
_REPLY_BYTES: Final = 20_000

_TRANSLATED: Final = Expectation(
    Outcome.SURVIVED, "the error is RELATED to the connection, and is translated to the pod"
)

EXPECTED: Final[Mapping[Mitigation, Expectation]] = dict.fromkeys(Mitigation, _TRANSLATED)


class ServicePathMtu:
    """The scenario that the module describes."""

    name = "service-path-mtu"
    summary = "a path MTU error about a DNATed service flow reaches the pod behind it"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, hop, node and pod in a row."""
        client = make("client")
        hop, node = routing(make("hop"), plan), routing(make("node"), plan)
        join(client, "eth0", hop, "eth0", plan.outside, (2, 1))
        join(hop, "eth1", node, "eth0", plan.far, (2, 1))
        hop.ip("link", "set", "eth0", "mtu", _MTU)
        route(client, "default", plan.outside.host(1))
        route(hop, "default", plan.far.host(1))
        route(node, "default", plan.far.host(2))
        return replace(kube_proxy_dnat.service(make, plan, client, node), reply_bytes=_REPLY_BYTES)

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
