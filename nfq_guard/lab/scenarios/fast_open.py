# SPDX-License-Identifier: MIT
"""A server that answers before the handshake has ended (TCP Fast Open).

The client's SYN carries its request, and the ACK that ends the handshake is lost. The answer is
longer than a segment. Until conntrack sees an ACK of the client, it does not know the client's
window, and only the answer's first segment is within the bound. The others exceed it by less than a
receiver window, so kernels since 6.1 only ignore them: they are translated and not INVALID. Kernels
before 5.17 restart the window at any segment in that state.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios import kube_proxy_dnat
from nfq_guard.lab.scenarios.base import MakeNamespace, Stage

# Client and server, each without a cookie (tcp_fastopen in the kernel's ip-sysctl).
_CLIENT: Final = 0x1 | 0x4
_SERVER: Final = 0x2 | 0x200
# Below the first flight of ten segments.
_REPLY_BYTES: Final = 10_000
_FIRST_ACK: Final = (
    "-A OUTPUT -p tcp --tcp-flags SYN,ACK,FIN,RST,PSH ACK"
    " -m statistic --mode nth --every 1000000 --packet 0 -j DROP"
)

EXPECTED: Final[Mapping[Mitigation, Expectation]] = dict.fromkeys(
    Mitigation,
    Expectation(Outcome.SURVIVED, "the early segments are not INVALID, and translated"),
)


class FastOpen:
    """The scenario that the module describes."""

    name = "fast-open"
    summary = "a server answers before the handshake has ended (TCP Fast Open)"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, node and pod; the client loses its first ACK."""
        stage = kube_proxy_dnat.network(make, plan, None, reply_bytes=_REPLY_BYTES)
        stage.client.sysctl("ipv4.tcp_fastopen", _CLIENT)
        stage.server.sysctl("ipv4.tcp_fastopen", _SERVER)
        rules = f"*mangle\n{_FIRST_ACK}\nCOMMIT\n"
        stage.client.run(f"{plan.iptables}-restore", "-w", stdin=rules)
        return replace(stage, is_fast_open=True)

    def expected(self, kernel: KernelRules) -> Expectations:
        """Between 5.17 and 6.1 the early segments are INVALID replies, as in `kube-proxy-dnat`."""
        if kernel.old_segments_pass or kernel.reinit_by_any_segment:
            return EXPECTED
        return kube_proxy_dnat.EXPECTED
