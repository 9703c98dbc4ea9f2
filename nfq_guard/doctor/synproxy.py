# SPDX-License-Identifier: MIT
"""Whether the policy lets SYNPROXY work.

SYNPROXY answers a SYN with a cookie, outside conntrack, so this SYN+ACK is INVALID. The ACK that
ends the handshake belongs to no entry, so it is INVALID too (tcp_loose=0), and SYNPROXY opens the
flow when it sees it.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

from nfq_guard.doctor.check import Check, ok, problem
from nfq_guard.doctor.rule_model import Table
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import Hook
from nfq_guard.policy.decision import Policy
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, Queued

TARGET: Final = "SYNPROXY"


@final
class _Packet(NamedTuple):
    """A packet of the handshake.

    Attributes:
        name: Its name in messages.
        octets: The packet; the client is 192.0.2.1:40000, the server 192.0.2.2:443.
        hook: Where the guard sees it.
        match: The conditions of a policy rule that match it.
    """

    name: str
    octets: bytes
    hook: Hook
    match: str


_PACKETS: Final = (
    _Packet(
        "SYN+ACK with the cookie",
        bytes.fromhex(
            "4500002800004000400600 00c0000202c0000201 01bb9c400000000100000001 5012ffff00000000"
        ),
        Hook.OUTPUT,
        'tcp_flags "syn ack", sport of SYNPROXY\'s ports',
    ),
    _Packet(
        "ACK that ends a handshake",
        bytes.fromhex(
            "4500002800004000400600 00c0000201c0000202 9c4001bb0000000100000001 5010ffff00000000"
        ),
        Hook.PREROUTING,
        'tcp_flags "ack !syn !rst !fin", dport of SYNPROXY\'s ports',
    ),
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
    """The decision of the policy for the INVALID packets of a handshake."""
    fine = True
    for packet in _PACKETS:
        interfaces = ("eth0", "") if packet.hook is Hook.PREROUTING else ("", "eth0")
        queued = Queued(packet.octets, packet.hook, *interfaces, 0, CHECKSUM_GOOD)
        entry = Finding(Reason.NO_ENTRY)
        decision = policy.decide(queued, decode(packet.octets), None, entry, 0.0)
        if decision.drops:
            fine = False
            yield problem(
                "policy.synproxy",
                f"the policy (rule {decision.rule}) drops the INVALID {packet.name}: in enforce, "
                "no connection to a port of SYNPROXY opens",
                f"allow it before that rule: reason no-entry, {packet.match}",
            )
    if fine:
        yield ok("policy.synproxy", "the policy lets the handshakes of SYNPROXY pass")
