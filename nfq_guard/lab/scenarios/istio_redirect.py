# SPDX-License-Identifier: MIT
"""A sidecar: every connection to the pod is redirected to a proxy that runs beside the app.

REDIRECT is DNAT to the pod itself, here from port 80 to the proxy's 15006. There are two stray
segments:

1. A segment from the client lies beyond the proxy's window. It is INVALID, so it is not redirected
   and arrives at port 80, where the app listens but has no such connection. The pod's kernel
   answers with an RST from port 80, the address that the client is connected to, so the client's
   connection is reset.
2. A segment from the proxy lies beyond the client's window. It is INVALID on its way out, so it
   leaves with port 15006, to which the client has no connection. The client answers with an RST to
   port 15006, which matches the proxy's connection. A rule that drops incoming INVALID packets
   stops that RST, but the untranslated segment has already left the pod: only a rule in OUTPUT
   would have matched it.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import Link, MakeNamespace, Stage, join, without_path_filter
from nfq_guard.lab.strays import Kind, Stray

_APP_PORT: Final = 80
_PROXY_PORT: Final = 15006

_LEAVES: Final = "the client's segment is dropped, but the proxy's leaves with port 15006"

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.RESET, "the client's segment bypasses the proxy, and the pod answers it with RST"
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED, "no window is checked, so both segments are redirected"
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.LEAKED, _LEAVES),
    Mitigation.DROP_FORWARD: Expectation(Outcome.RESET, "no packet is forwarded here"),
    Mitigation.DROP_INPUT: Expectation(Outcome.LEAKED, _LEAVES),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED, "the guard drops both, on the way in and on the way out"
    ),
    Mitigation.GUARD_HEAL: Expectation(
        Outcome.SURVIVED, "the guard drops both, on the way in and on the way out"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.RESET, "dry-run only records that the segment would be dropped"
    ),
}


class IstioRedirect:
    """The scenario that the module describes."""

    name = "istio-redirect"
    summary = "segments of a REDIRECTed connection bypass the sidecar, or leave with its port"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """A client and a pod on one link."""
        client, pod = make("client"), without_path_filter(make("pod"))
        join(client, "eth0", pod, "eth0", plan.pods, (2, 5))
        app, proxy = ((plan.pods.host(5), port) for port in (_APP_PORT, _PROXY_PORT))
        return Stage(
            router=pod,
            client=client,
            server=pod,
            connect_to=app,
            listen_on=proxy,
            nat=f"-A PREROUTING -p tcp --dport {_APP_PORT} -j REDIRECT --to-ports {_PROXY_PORT}",
            links=(Link(label="outer", namespace=pod, interface="eth0"),),
            strays=(
                Stray(kind=Kind.SEQ_OVER, sender=client, tap="outer", from_client=True),
                Stray(kind=Kind.SEQ_OVER, sender=pod, tap="outer", from_client=False, source=proxy),
            ),
            outer="outer",
            hidden=(proxy,),
            extra_listener=app,
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel: SEQ over the bound is INVALID on all of them."""
        del kernel
        return EXPECTED
