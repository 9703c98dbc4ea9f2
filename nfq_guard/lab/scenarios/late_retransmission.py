# SPDX-License-Identifier: MIT
"""The packet of Kubernetes issue 74839, which kernels since 6.1 no longer call INVALID.

The network is that of `kube-proxy-dnat`. The client's receive buffer is small and the answer many
times larger. After the whole answer has arrived, the pod sends its first segment once more, like a
retransmission that was delayed. Its sequence number is more than a receiver window below the last
one sent. Kernels before 6.1 call it INVALID (SEQ under the lower bound), with the same effect as
any reply that is not translated back. Kernels since 6.1 translate it, and the client answers with
an ACK; there the kernel counts no INVALID packet.
"""

from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios import kube_proxy_dnat
from nfq_guard.lab.scenarios.base import MakeNamespace, Stage
from nfq_guard.lab.strays import Kind

_REPLY_BYTES: Final = 300_000
_RCVBUF_BYTES: Final = 8_192

_HARMLESS: Final = Expectation(
    Outcome.SURVIVED, "since kernel 6.1 an old segment is not INVALID: it is translated"
)


class LateRetransmission:
    """The scenario that the module describes."""

    name = "late-retransmission"
    summary = "the packet of Kubernetes #74839: INVALID before kernel 6.1, translated since"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, node and pod, with a long answer into a small buffer."""
        return kube_proxy_dnat.network(
            make, plan, Kind.OLD_DATA, reply_bytes=_REPLY_BYTES, client_rcvbuf=_RCVBUF_BYTES
        )

    def expected(self, kernel: KernelRules) -> Expectations:
        """Harmless on kernels that accept old segments; else as in `kube-proxy-dnat`."""
        if kernel.old_segments_pass:
            return dict.fromkeys(Mitigation, _HARMLESS)
        return kube_proxy_dnat.EXPECTED
