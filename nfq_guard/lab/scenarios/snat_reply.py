# SPDX-License-Identifier: MIT
"""A masqueraded client behind a router that answers its packets with RST.

There are two stray segments:

1. A reply from the server lies beyond the client's window. It is INVALID, so it is not translated
   back: its destination stays the router's own address, where no socket matches it. The router
   answers the server with an RST, and the server's connection dies. The reply is delivered
   locally, so a rule in FORWARD does not match it.
2. An RST from the client's side is below the sequence number that the server has acknowledged. It
   is INVALID ("invalid rst", a check that be_liberal does not disable), so it is not masqueraded
   but forwarded to the outside with the client's private address. A rule in INPUT does not match
   it.
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

EXPECTED: Final[Mapping[Mitigation, Expectation]] = {
    Mitigation.NONE: Expectation(
        Outcome.RESET, "the reply stops at the router, which answers it with RST"
    ),
    Mitigation.BE_LIBERAL: Expectation(
        Outcome.LEAKED,
        "the reply is translated, but the old RST, which fails another check than the window's, "
        "leaves with the client's private address",
    ),
    Mitigation.DROP_PREROUTING: Expectation(
        Outcome.SURVIVED, "both are dropped before they are routed"
    ),
    Mitigation.DROP_FORWARD: Expectation(
        Outcome.RESET, "the reply is delivered to the router itself, not forwarded"
    ),
    Mitigation.DROP_INPUT: Expectation(
        Outcome.LEAKED,
        "the reply is dropped, but the old RST is forwarded with the client's private address",
    ),
    Mitigation.GUARD: Expectation(
        Outcome.SURVIVED, "both belong to a translated flow, so the guard drops them"
    ),
    Mitigation.GUARD_HEAL: Expectation(
        Outcome.SURVIVED, "both belong to a translated flow, so the guard drops them"
    ),
    Mitigation.GUARD_DRY_RUN: Expectation(
        Outcome.RESET, "dry-run only records that the reply would be dropped"
    ),
}


class SnatReply:
    """The scenario that the module describes."""

    name = "snat-reply"
    summary = "reply to a masqueraded client ends at the router, which answers with an RST"

    def build(self, make: MakeNamespace, plan: Plan) -> Stage:
        """Client, router, server."""
        stage = masquerading(make, plan)
        reply = Stray(kind=Kind.SEQ_OVER, sender=stage.server, tap="outer", from_client=False)
        reset = Stray(kind=Kind.STALE_RST, sender=stage.client, tap="inner", from_client=True)
        return replace(stage, strays=(reply, reset))

    def expected(self, kernel: KernelRules) -> Expectations:
        """The same on every kernel."""
        del kernel
        return EXPECTED
