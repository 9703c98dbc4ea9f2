# SPDX-License-Identifier: MIT
"""The text of the rules, and reading rules back."""

import pytest

from nfq_guard.errors import UsageError
from nfq_guard.firewall import FailMode, RulesSpec
from nfq_guard.firewall.render import render
from nfq_guard.firewall.saved import is_own, meaning, parse


def test_the_defaults_queue_with_bypass_and_shed_nothing() -> None:
    assert render(RulesSpec()).splitlines() == [
        "*mangle",
        ":NFQ_GUARD - [0:0]",
        "-A NFQ_GUARD -m comment --comment nfq_guard -j NFQUEUE --queue-num 0 --queue-bypass",
        "-I PREROUTING 1 ! -i lo -m conntrack --ctstate INVALID"
        " -m comment --comment nfq_guard -j NFQ_GUARD",
        "-I OUTPUT 1 -m conntrack --ctstate INVALID -m comment --comment nfq_guard -j NFQ_GUARD",
        "COMMIT",
    ]


@pytest.mark.parametrize(
    ("mode", "bypass", "shed", "fallback"),
    [
        (FailMode.OPEN, True, "RETURN", False),
        (FailMode.CLOSED, False, "DROP", False),
        (FailMode.KERNEL_DROP, True, "RETURN", True),
    ],
)
def test_each_fail_mode_decides_over_bypass_shedding_and_fallback(
    mode: FailMode, bypass: bool, shed: str, fallback: bool
) -> None:
    text = render(RulesSpec(fail_mode=mode, max_rate_pps=1000))
    assert ("--queue-bypass" in text) is bypass
    assert f'"nfq_guard: above the rate" -j {shed}' in text
    assert ("*filter" in text) is fallback


def test_several_queues_are_balanced_and_one_is_not() -> None:
    assert "--queue-balance 2:5" in render(RulesSpec(first_queue=2, last_queue=5))
    assert "--queue-cpu-fanout" in render(RulesSpec(last_queue=3, cpu_fanout=True))
    assert "--queue-cpu-fanout" not in render(RulesSpec(cpu_fanout=True))


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"first_queue": 3, "last_queue": 2}, "queues"),
        ({"last_queue": 65536}, "queues"),
        ({"first_queue": -1}, "queues"),
        ({"max_rate_pps": 0}, "max_rate_pps"),
        ({"max_rate_pps": 1_000_001}, "max_rate_pps"),
        ({"judged_mark": 0}, "mark"),
    ],
)
def test_what_no_rule_can_say_is_refused(keys: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        RulesSpec(**keys)  # type: ignore[arg-type]  # keys of int fields only


def test_the_meaning_of_a_rule_does_not_hang_on_order_and_spelling() -> None:
    one = '-m comment --comment "nfq_guard" ! -i lo -m conntrack --ctstate INVALID -j NFQ_GUARD'
    other = "! -i lo -m conntrack --ctstate INVALID -m comment --comment nfq_guard -j NFQ_GUARD"
    assert meaning(one) == meaning(other)
    assert meaning(one) != meaning(other.replace("! ", ""))
    assert meaning(one) != meaning(other.replace("INVALID", "NEW"))


def test_a_rate_means_what_the_kernel_keeps_of_it() -> None:
    assert meaning("--hashlimit-above 30000/sec") == meaning("--hashlimit-above 30303/sec")
    assert meaning("--hashlimit-above 30000/sec") != meaning("--hashlimit-above 20000/sec")


def test_saved_rules_are_read_whoever_wrote_them() -> None:
    saved = parse(
        "# Generated\n*mangle\n:OUTPUT ACCEPT [0:0]\n:NFQ_GUARD - [0:0]\n:NFQ_GUARDIAN - [0:0]\n"
        '-A OUTPUT -m comment --comment "it\'s \\"odd" -j NFQ_GUARD\n'
        "-A OUTPUT -m comment --comment it's -j DROP\n-A OUTPUT\n-A NFQ_GUARDIAN -g NFQ_GUARD_X\n"
        "COMMIT\nnonsense\n"
    )
    table = saved["mangle"]
    assert table.own_chains() == ["NFQ_GUARD"]
    assert [rule.target for rule in table.own_jumps()] == ["NFQ_GUARD", "NFQ_GUARD_X"]
    assert [rule.target for rule in table.of("OUTPUT")] == ["NFQ_GUARD", "DROP", ""]
    assert table.foreign_count() == 3
    assert is_own("NFQ_GUARD_DROP")
    assert not is_own("NFQ_GUARDIAN")
