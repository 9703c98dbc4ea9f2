# SPDX-License-Identifier: MIT
"""The scenarios, in the order in which they are listed."""

from typing import Final

from nfq_guard.lab.scenarios.asymmetric import Asymmetric
from nfq_guard.lab.scenarios.base import Scenario
from nfq_guard.lab.scenarios.broken_window_tracking import BrokenWindowTracking
from nfq_guard.lab.scenarios.failover import Failover
from nfq_guard.lab.scenarios.fast_open import FastOpen
from nfq_guard.lab.scenarios.istio_redirect import IstioRedirect
from nfq_guard.lab.scenarios.kube_proxy_dnat import KubeProxyDnat
from nfq_guard.lab.scenarios.late_retransmission import LateRetransmission
from nfq_guard.lab.scenarios.moby_hairpin import MobyHairpin
from nfq_guard.lab.scenarios.path_mtu import PathMtu
from nfq_guard.lab.scenarios.pod_reset import PodReset
from nfq_guard.lab.scenarios.private_source import PrivateSource
from nfq_guard.lab.scenarios.rst_injection import RstInjection
from nfq_guard.lab.scenarios.service_path_mtu import ServicePathMtu
from nfq_guard.lab.scenarios.snat_reply import SnatReply

_ALL: Final[tuple[Scenario, ...]] = (
    KubeProxyDnat(),
    IstioRedirect(),
    MobyHairpin(),
    SnatReply(),
    Asymmetric(),
    LateRetransmission(),
    BrokenWindowTracking(),
    RstInjection(),
    FastOpen(),
    Failover(),
    PodReset(),
    PrivateSource(),
    PathMtu(),
    ServicePathMtu(),
)
SCENARIOS: Final[dict[str, Scenario]] = {scenario.name: scenario for scenario in _ALL}
