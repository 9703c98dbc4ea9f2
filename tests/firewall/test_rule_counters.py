# SPDX-License-Identifier: MIT
from nfq_guard.firewall.rule_counters import RuleCounters, parse

SAVED = """\
*mangle
:NFQ_GUARD - [0:0]
[1200:72000] -A PREROUTING ! -i lo -m conntrack --ctstate INVALID -j NFQ_GUARD
[700:42000] -A NFQ_GUARD -m hashlimit --hashlimit-above 100/sec --hashlimit-burst 10 \
--hashlimit-mode srcip --hashlimit-name nfqg100 -m comment --comment "nfq_guard: above the rate" \
-j RETURN
[500:30000] -A NFQ_GUARD -m comment --comment nfq_guard -j NFQUEUE --queue-num 0 --queue-bypass
COMMIT
*filter
[690:41400] -A NFQ_GUARD_DROP -m comment --comment "nfq_guard: nobody judged it" -j DROP
[3:3] -A INPUT -j DROP
COMMIT
"""


def test_the_two_rules_are_known_by_their_comments() -> None:
    assert parse(SAVED) == RuleCounters(shed=700, unjudged=690)
    assert parse("") == RuleCounters()
    assert parse(SAVED) + parse(SAVED) == RuleCounters(shed=1400, unjudged=1380)
