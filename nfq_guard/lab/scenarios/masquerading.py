# SPDX-License-Identifier: MIT
"""The network of the scenarios with a masqueraded client."""

from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.scenarios.base import Link, MakeNamespace, Stage, join, route, routing


def masquerading(make: MakeNamespace, plan: Plan) -> Stage:
    """Client, masquerading router and server; the strays are to be added."""
    client, router, server = make("client"), routing(make("router"), plan), make("server")
    join(client, "eth0", router, "lan0", plan.lan, (2, 1))
    join(server, "eth0", router, "wan0", plan.far, (2, 1))
    route(client, "default", plan.lan.host(1))
    listening = (plan.far.host(2), 443)
    return Stage(
        router=router,
        client=client,
        server=server,
        connect_to=listening,
        listen_on=listening,
        nat="-A POSTROUTING -o wan0 -j MASQUERADE",
        links=(
            Link(label="inner", namespace=router, interface="lan0"),
            Link(label="outer", namespace=router, interface="wan0"),
        ),
        strays=(),
        outer="outer",
        hidden=((plan.lan.host(2), None),),
    )
