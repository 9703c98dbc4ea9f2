# SPDX-License-Identifier: MIT
"""The packet of Kubernetes issue 74839, which kernels since 6.1 no longer call INVALID.

The network is that of `kube-proxy-dnat`. The client's receive buffer is small, the answer many
times larger, and after it has all arrived the pod sends the first segment of it once more, as a
retransmission that was long on its way. It lies more than a receiver window below what was last
sent. Kernels before 6.1 call it INVALID (SEQ under the lower bound), with the same end as any
reply that is not translated back; kernels since 6.1 translate it, and the client answers with an
ACK. The kernel's own count of INVALID packets, 0, shows which kind this one is.
"""

from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios import kube_proxy_dnat
from nfq_guard.lab.scenarios.base import MakeNamespace, Stage
from nfq_guard.lab.strays import Kind

_REPLY_OCTETS: Final = 300_000
_RCVBUF_OCTETS: Final = 8_192

_HARMLESS: Final = Expectation(
    Outcome.SURVIVED, "since kernel 6.1 an old segment is not INVALID: it is translated"
)


class LateRetransmission:
    """See the module."""

    name = "late-retransmission"
    summary = "the packet of Kubernetes #74839: INVALID before kernel 6.1, translated since"

    def build(self, make: MakeNamespace) -> Stage:
        """Client, node, pod, and a long answer into a small buffer."""
        return kube_proxy_dnat.network(
            make, Kind.OLD_DATA, reply_octets=_REPLY_OCTETS, client_rcvbuf=_RCVBUF_OCTETS
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """Harmless where old segments pass; else as in `kube-proxy-dnat`."""
        if kernel.old_segments_pass:
            return dict.fromkeys(Mitigation, _HARMLESS)
        return kube_proxy_dnat.EXPECTED
