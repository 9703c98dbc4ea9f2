# SPDX-License-Identifier: MIT
"""The kernel's packet counters of our rules."""

import re
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.firewall.render import ABOVE_THE_RATE, NOBODY_JUDGED

_RULE: Final = re.compile(r"\[(\d+):\d+\] -A \S+ (.*)")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCounters:
    """Packets since the rules were installed.

    Attributes:
        shed: Packets above `max_rate_pps`, left to the fail mode before they reached the queue.
        unjudged: Packets that the fail mode kernel-drop dropped because they were not judged.
    """

    shed: int = 0
    unjudged: int = 0

    def __add__(self, other: "RuleCounters") -> "RuleCounters":
        """The sums."""
        return RuleCounters(shed=self.shed + other.shed, unjudged=self.unjudged + other.unjudged)


def parse(text: str) -> RuleCounters:
    """Read the output of `iptables-save -c`."""
    shed = unjudged = 0
    for line in text.splitlines():
        found = _RULE.match(line)
        if found is None:
            continue
        if ABOVE_THE_RATE in found[2]:
            shed += int(found[1])
        elif NOBODY_JUDGED in found[2]:
            unjudged += int(found[1])
    return RuleCounters(shed=shed, unjudged=unjudged)
