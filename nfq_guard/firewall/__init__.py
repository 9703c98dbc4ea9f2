# SPDX-License-Identifier: MIT
"""Manages our own chains in the packet filter, and no others."""

from nfq_guard.firewall.compare import Difference, Kind
from nfq_guard.firewall.manager import BOTH_FAMILIES, Changes, Firewall
from nfq_guard.firewall.rule_counters import RuleCounters
from nfq_guard.firewall.spec import (
    UNJUDGED_MARK,
    Backend,
    FailMode,
    Family,
    Native,
    Place,
    RulesSpec,
)

__all__ = [
    "BOTH_FAMILIES",
    "UNJUDGED_MARK",
    "Backend",
    "Changes",
    "Difference",
    "FailMode",
    "Family",
    "Firewall",
    "Kind",
    "Native",
    "Place",
    "RuleCounters",
    "RulesSpec",
]
