# SPDX-License-Identifier: MIT
"""Whether the policy lets SYNPROXY work.

SYNPROXY answers a SYN with a cookie, outside conntrack. The ACK that ends the handshake belongs to
no entry, so it is INVALID (tcp_loose=0), and SYNPROXY opens the flow when it sees it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from nfq_guard.doctor.check import Check, ok, problem
from nfq_guard.doctor.rule_model import Table
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import Hook
from nfq_guard.policy.decision import Policy
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, Queued

TARGET: Final = "SYNPROXY"

# From 192.0.2.1:40000 to 192.0.2.2:443, flag ACK.
_ACK: Final = bytes.fromhex(
    "4500002800004000400600 00c0000201c0000202 9c4001bb0000000100000001 5010ffff00000000"
)


def used(tables: Iterable[Table]) -> bool:
    """Whether a rule of this host hands packets to SYNPROXY."""
    return any(
        rule.target == TARGET
        for table in tables
        for rules in table.chains.values()
        for rule in rules
    )


def checks(policy: Policy) -> Iterator[Check]:
    """The decision of the policy for the ACK that ends a handshake."""
    queued = Queued(_ACK, Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)
    decision = policy.decide(queued, decode(_ACK), None, Finding(Reason.NO_ENTRY), 0.0)
    if decision.drops:
        yield problem(
            "policy.synproxy",
            f"the policy (rule {decision.rule}) drops the INVALID ACK that ends a handshake: "
            "in enforce, no connection to a port of SYNPROXY opens",
            'allow it before that rule: reason no-entry, tcp_flags "ack !syn !rst !fin", dport of '
            "SYNPROXY's ports",
        )
    else:
        yield ok("policy.synproxy", "the policy lets the ACK pass that SYNPROXY waits for")
