# SPDX-License-Identifier: MIT
"""A masqueraded client's late RST leaves after the router's entry has expired.

The connection is idle for longer than the router keeps its entry. Then the client sends a late RST.
Conntrack has no entry for it and makes none for an RST: it is INVALID, so it is not masqueraded but
leaves with the client's private address. The client's next request is picked up (tcp_loose=1) and
masqueraded to the same address and port, so that the connection continues.

Nothing in the RST shows that it would have been translated: without an entry it is like any late
RST of an untranslated network, which ends a connection that its peer still holds. The default
policy allows it. The preset `no-leak` names the networks that the host hides, and drops it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.outcome import Expectation, Expectations, Mitigation, Outcome
from nfq_guard.lab.scenarios.base import MakeNamespace, Stage
from nfq_guard.lab.scenarios.masquerading import masquerading
from nfq_guard.lab.strays import Kind, Stray

# The kernel's default is five days.
_ESTABLISHED_S: Final = 1
_IDLE_S: Final = 2.5

_LEAKED: Final = Expectation(
    Outcome.LEAKED, "the late RST is forwarded with the client's private address"
)
_DROPPED: Final = Expectation(Outcome.SURVIVED, "the late RST is dropped")
_ALLOWED: Final = Expectation(
    Outcome.LEAKED,
    "without an entry the late RST is of no translated flow, so the default policy allows it; the "
    "preset no-leak drops it",
)

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: _LEAKED,
    Mitigation.BE_LIBERAL: _LEAKED,
    Mitigation.DROP_PREROUTING: _DROPPED,
    Mitigation.DROP_FORWARD: _DROPPED,
    Mitigation.DROP_INPUT: _LEAKED,
    Mitigation.GUARD: _ALLOWED,
    Mitigation.GUARD_HEAL: _ALLOWED,
    Mitigation.GUARD_DRY_RUN: _ALLOWED,
}


class PrivateSource:
    """The scenario that the module describes."""

    name = "private-source"
    summary = "a late RST leaves with a private address, as its entry has expired"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, router, server."""
        stage = masquerading(make, plan)
        stage.router.sysctl("netfilter.nf_conntrack_tcp_timeout_established", _ESTABLISHED_S)
        late = Stray(
            kind=Kind.STALE_RST,
            sender=stage.client,
            tap="inner",
            from_client=True,
            pause_s=_IDLE_S,
        )
        return replace(stage, strays=(late,))

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
