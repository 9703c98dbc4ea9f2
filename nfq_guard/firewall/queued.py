# SPDX-License-Identifier: MIT
"""Reads from the kernel how many packets our rules have queued, in a fifth of a millisecond.

The programs take tens of milliseconds, in which thousands of packets may arrive.
"""

from typing import Final

from nfq_guard.errors import UnavailableError
from nfq_guard.firewall.legacy_tables import LegacyTables
from nfq_guard.firewall.nft_query import FAMILY_INET, NFTABLES, generation
from nfq_guard.firewall.render import MANGLE, SECURITY
from nfq_guard.firewall.spec import CHAIN, NATIVE_CHAIN, NATIVE_TABLE
from nfq_guard.netlink.connection import Connection, responses
from nfq_guard.netlink.messages import (
    NLMSG_ERROR,
    attribute,
    attributes,
    elements,
    error_in,
    message,
)

# From the kernel's user interface (linux/netlink.h, linux/netfilter/nf_tables.h).
_DUMP: Final = 0x300
_GET_RULE: Final = NFTABLES << 8 | 7
_NEW_RULE: Final = NFTABLES << 8 | 6
_RULE_TABLE: Final = 1
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_EXPRESSION_NAME: Final = 1
_EXPRESSION_DATA: Final = 2
_COUNTER_PACKETS: Final = 2
_TARGET_NAME: Final = 1
_IPV4: Final = 2
_IPV6: Final = 10
_CHAINS: Final = (
    (FAMILY_INET, NATIVE_TABLE, NATIVE_CHAIN),
    *((family, table, CHAIN) for family in (_IPV4, _IPV6) for table in (MANGLE, SECURITY)),
)


def queued_packets(legacy: LegacyTables) -> int | None:
    """Number of packets that our rules have queued since they were created; None if unknown.

    Sums over all backends; legacy iptables counts as far as `legacy` can read it.
    """
    before = generation()
    try:
        with Connection() as connection:
            found = sum(_of_chain(connection, *chain) for chain in _CHAINS)
    except (UnavailableError, OSError):
        found = 0
        before = None
    # A ruleset that changes meanwhile may be read inconsistently.
    if generation() != before:
        return None
    of_legacy = legacy.queued()
    if before is None and of_legacy is None:
        return None
    return found + (of_legacy or 0)


def _of_chain(connection: Connection, family: int, table: str, chain: str) -> int:
    """The packets of one chain; 0 without the chain.

    Raises:
        OSError: The kernel refuses.
    """
    names = (table.encode() + b"\0", chain.encode() + b"\0")
    body = attribute(_RULE_TABLE, names[0]) + attribute(_RULE_CHAIN, names[1])
    connection.send(message(_GET_RULE, _DUMP, 1, family, 0, body))
    found = 0
    for kind, _, content in responses(connection):
        if kind == NLMSG_ERROR and error_in(content):
            raise OSError(error_in(content), "nftables' rules")
        if kind == _NEW_RULE:
            rule = attributes(content[4:])
            # Kernels before 5.0 may list the rules of other chains too.
            if (rule.get(_RULE_TABLE), rule.get(_RULE_CHAIN)) == names:
                found += _queued(rule.get(_RULE_EXPRESSIONS, b""))
    return found


def _queued(expressions: bytes) -> int:
    """The counter of a rule that leads to a queue; 0 for other rules."""
    packets = 0
    queues = False
    for expression in map(attributes, elements(expressions)):
        name = expression.get(_EXPRESSION_NAME, b"").rstrip(b"\0")
        data = attributes(expression.get(_EXPRESSION_DATA, b""))
        if name == b"counter":
            packets = int.from_bytes(data.get(_COUNTER_PACKETS, b""), "big")
        queues = queues or name == b"queue"
        queues = queues or (name == b"target" and data.get(_TARGET_NAME) == b"NFQUEUE\0")
    return packets if queues else 0
