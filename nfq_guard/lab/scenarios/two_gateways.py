# SPDX-License-Identifier: MIT
"""The network of two scenarios: two gateways that translate one service to the same server."""

from dataclasses import dataclass
from typing import Self

from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.scenarios.base import (
    MakeNamespace,
    dnat,
    join,
    route,
    routing,
    without_path_filter,
)
from nfq_guard.lab.wiretap import Address
from nfq_guard.names import endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoGateways:
    """A client and a server, connected through the first gateway.

    Attributes:
        client: The client.
        first: The gateway of both routes.
        second: The other gateway, which translates as well.
        server: The server.
        service: The address that the client connects to.
        listening: The address that it is translated to.
        translation: The rule of both gateways for that.
        plan: The addresses.
    """

    client: Namespace
    first: Namespace
    second: Namespace
    server: Namespace
    service: Address
    listening: Address
    translation: str
    plan: Plan

    @classmethod
    def build(cls, make: MakeNamespace, plan: Plan, first: str, second: str) -> Self:
        """Build the network; the gateways' namespaces have the names `first` and `second`."""
        client, server = (without_path_filter(make(name)) for name in ("client", "server"))
        gateways = [routing(make(name), plan) for name in (first, second)]
        sides = (plan.outside, plan.pods), (plan.second_outside, plan.second_pods)
        for number, (gateway, (outer, inner)) in enumerate(zip(gateways, sides, strict=True)):
            join(client, f"eth{number}", gateway, "eth0", outer, (2, 1))
            join(server, f"eth{number}", gateway, "cni0", inner, (2, 1))
        # The peers keep the addresses of the first path.
        route(gateways[1], plan.outside.host(2), plan.second_outside.host(2))
        route(gateways[1], plan.pods.host(2), plan.second_pods.host(2))
        route(client, "default", plan.outside.host(1))
        route(server, "default", plan.pods.host(1))
        service, listening = (plan.services.host(10), 80), (plan.pods.host(2), 8080)
        return cls(
            client=client,
            first=gateways[0],
            second=gateways[1],
            server=server,
            service=service,
            listening=listening,
            translation=dnat(service[0], endpoint(*listening)),
            plan=plan,
        )

    def translate(self, gateway: Namespace) -> None:
        """Load the translation into the gateway that the trial does not configure."""
        rules = f"*nat\n{self.translation}\nCOMMIT\n"
        gateway.run(f"{self.plan.iptables}-restore", "-w", stdin=rules)

    def move_client(self) -> None:
        """Route the client's packets through the second gateway."""
        route(self.client, "default", self.plan.second_outside.host(1), is_better=True)

    def move_both(self) -> None:
        """Route the packets of both through the second gateway."""
        self.move_client()
        route(self.server, "default", self.plan.second_pods.host(1), is_better=True)
