# SPDX-License-Identifier: MIT
"""A sidecar: every connection to the pod is redirected to a proxy that listens beside the app.

REDIRECT is DNAT to the pod itself, here from port 80 to the proxy's 15006. Two segments go astray:

1. A segment of the client lies beyond the window of the proxy. It is INVALID, so it is not
   redirected, and arrives at port 80, where the app listens that knows no such connection. The
   pod's own kernel answers RST from port 80, which is exactly what the client talks to: the
   client's connection is reset.
2. A segment of the proxy lies beyond the window of the client. It is INVALID on its way out, so
   it leaves with port 15006, which the client has never heard of. The client answers RST to
   15006, where it fits the proxy's connection. A rule that drops INVALID packets on their way in
   stops that RST, but the untranslated segment has left the pod: only a rule in OUTPUT sees it.
"""

from collections.abc import Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import Link, MakeNamespace, Stage, join, without_path_filter
from nfq_guard.lab.strays import Kind, Stray

_POD: Final = "10.244.1.5"
_APP: Final = (_POD, 80)
_PROXY: Final = (_POD, 15006)

_LEAVES: Final = "the client's segment is dropped, but the proxy's leaves with port 15006"

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.RESET, "the client's segment misses the proxy, and the pod answers it with RST"
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.SURVIVED, "no window is checked, so both segments are redirected"
    ),
    Mitigation.DROP_PREROUTING: Expectation(Outcome.LEAKED, _LEAVES),
    Mitigation.DROP_FORWARD: Expectation(Outcome.RESET, "nothing is forwarded here"),
    Mitigation.DROP_INPUT: Expectation(Outcome.LEAKED, _LEAVES),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED, "the guard drops both, on the way in and on the way out"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.RESET, "dry-run only says that the segment would be dropped"
    ),
}


class IstioRedirect:
    """See the module."""

    name = "istio-redirect"
    summary = "segments of a REDIRECTed connection miss the sidecar, or leave with its port"

    def build(self, make: MakeNamespace) -> Stage:
        """A client and a pod on one link."""
        client, pod = make("client"), without_path_filter(make("pod"))
        join(client, "eth0", pod, "eth0", "10.244.1.2/24", f"{_POD}/24")
        return Stage(
            router=pod,
            client=client,
            server=pod,
            connect_to=_APP,
            listen_on=_PROXY,
            nat=f"-A PREROUTING -p tcp --dport {_APP[1]} -j REDIRECT --to-ports {_PROXY[1]}",
            links=(Link(label="outer", namespace=pod, interface="eth0"),),
            strays=(
                Stray(kind=Kind.SEQ_OVER, sender=client, tap="outer", from_client=True),
                Stray(
                    kind=Kind.SEQ_OVER, sender=pod, tap="outer", from_client=False, source=_PROXY
                ),
            ),
            outer="outer",
            hidden=(_PROXY,),
            extra_listener=_APP,
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel: SEQ over the bound is INVALID on all of them."""
        del kernel
        return EXPECTED
