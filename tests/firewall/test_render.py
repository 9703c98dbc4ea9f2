# SPDX-License-Identifier: MIT
"""The text of the rules, and reading rules back."""

import pytest

from nfq_guard.errors import UsageError
from nfq_guard.firewall import Backend, FailMode, Family, Kind, RulesSpec
from nfq_guard.firewall.compare import remarks
from nfq_guard.firewall.render import render, wanted
from nfq_guard.firewall.saved import is_own, meaning, parse
from nfq_guard.firewall.transaction import own_of

_CHAIN = [
    ":NFQ_GUARD - [0:0]",
    "-A NFQ_GUARD -m comment --comment nfq_guard -j NFQUEUE --queue-num 0 --queue-bypass",
]
_RECEIVED = (
    "-A PREROUTING ! -i lo -m conntrack --ctstate INVALID"
    " -m comment --comment nfq_guard -j NFQ_GUARD"
)
_SENT = "-A OUTPUT -m conntrack --ctstate INVALID -m comment --comment nfq_guard -j NFQ_GUARD"


@pytest.mark.parametrize(
    ("backend", "lines"),
    [
        (Backend.LEGACY, ["*mangle", *_CHAIN, _RECEIVED, _SENT, "COMMIT"]),
        (
            Backend.NFT,
            ["*mangle", *_CHAIN, _RECEIVED, "COMMIT", "*security", *_CHAIN, _SENT, "COMMIT"],
        ),
    ],
)
def test_the_defaults_queue_with_bypass_and_shed_nothing(
    backend: Backend, lines: list[str]
) -> None:
    assert render(RulesSpec(), backend).splitlines() == lines


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
    text = render(RulesSpec(fail_mode=mode, max_rate_pps=1000), Backend.LEGACY)
    assert ("--queue-bypass" in text) is bypass
    assert f'"nfq_guard: above the rate" -j {shed}' in text
    assert ("*filter" in text) is fallback
    assert ("-j MARK --set-xmark 0x1000/0x1000" in text) is fallback


def test_kernel_drop_of_sent_packets_in_nft_is_in_the_queue() -> None:
    """No table follows security, so nothing could drop by the mark there."""
    text = render(RulesSpec(fail_mode=FailMode.KERNEL_DROP, max_rate_pps=1000), Backend.NFT)
    mangle, security, fallback = text.split("COMMIT\n")[:3]
    assert "--queue-bypass" in mangle
    assert "-j MARK" in mangle
    assert "--queue-bypass" not in security
    assert "-j MARK" not in security
    assert '"nfq_guard: above the rate" -j DROP' in security
    assert "-I OUTPUT" not in fallback
    assert "-I FORWARD 1" in fallback


def test_several_queues_are_balanced_and_one_is_not() -> None:
    assert "--queue-balance 2:5" in render(RulesSpec(first_queue=2, last_queue=5), Backend.NFT)
    assert "--queue-cpu-fanout" in render(RulesSpec(last_queue=3, cpu_fanout=True), Backend.NFT)
    assert "--queue-cpu-fanout" not in render(RulesSpec(cpu_fanout=True), Backend.NFT)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"first_queue": 3, "last_queue": 2}, "queues"),
        ({"last_queue": 65536}, "queues"),
        ({"first_queue": -1}, "queues"),
        ({"max_rate_pps": 0}, "max_rate_pps"),
        ({"max_rate_pps": 1_000_001}, "max_rate_pps"),
        ({"unjudged_mark": 0}, "mark"),
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


@pytest.mark.parametrize(
    ("rule", "kinds"),
    [
        ("-j ACCEPT", {Kind.TAKEN_BEFORE}),
        ("-m conntrack --ctstate INVALID -j NFQUEUE --queue-num 0", set()),  # our queue
        ("-m conntrack --ctstate INVALID -j NFQUEUE --queue-num 7", {Kind.TAKEN_BEFORE}),
        ("-p tcp -m socket -j DIVERT", {Kind.TAKEN_BEFORE}),
        ("-g MARKS", {Kind.TAKEN_BEFORE}),
        ("-j RETURN", {Kind.TAKEN_BEFORE}),
        ("-m conntrack --ctstate INVALID,NEW -j DROP", {Kind.TAKEN_BEFORE}),
        ("-j MARKS", set()),
        ("-j LOOP", set()),
        ("-j MARK --set-xmark 0x1/0x1", set()),
        ("-j TEE --gateway 10.0.0.1", set()),
        ("-i lo -j ACCEPT", set()),
        ("! -i lo -j ACCEPT", {Kind.TAKEN_BEFORE}),
        ("-j DROP", {Kind.TAKEN_BEFORE}),
        ("-m rpfilter --invert -j DROP", set()),
        ("-j PATHS", set()),
        ("-m conntrack ! --ctstate NEW,RELATED,ESTABLISHED -j PATHS", {Kind.TAKEN_BEFORE}),
        ("-m connmark ! --mark 0x0 -j ACCEPT", set()),
        ("-m conntrack --ctstate ESTABLISHED -j ACCEPT", set()),
        ("-m conntrack --ctstatus SNAT -j ACCEPT", set()),
        ("-m conntrack ! --ctstate INVALID -j RETURN", set()),
        # Beside a state the kernel looks at nothing else without an entry.
        ("-m conntrack --ctstate INVALID --ctdir REPLY -j DROP", {Kind.TAKEN_BEFORE}),
        ("-m conntrack --ctstate INVALID -m conntrack --ctdir REPLY -j DROP", set()),
        ("-m conntrack --ctrepldst 10.0.0.1 -j ACCEPT", set()),
        ("-m connbytes --connbytes 1: --connbytes-mode packets -j ACCEPT", set()),
        ("-m cluster --cluster-total-nodes 2 ! --cluster-local-node 1 -j ACCEPT", set()),
        ("-m helper --helper ftp -j ACCEPT", set()),
        ("-m helper ! --helper ftp -j ACCEPT", {Kind.TAKEN_BEFORE}),
        ("-m connlabel ! --label 1 -j ACCEPT", {Kind.TAKEN_BEFORE}),
        ("-m comment --comment connmark -j ACCEPT", {Kind.TAKEN_BEFORE}),
        ('-m comment --comment "not for --queue-num 0" -j ACCEPT', {Kind.TAKEN_BEFORE}),
    ],
)
def test_a_rule_before_ours_that_takes_invalid_packets_is_named(
    rule: str, kinds: set[Kind]
) -> None:
    live = parse(
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:DIVERT - [0:0]\n:MARKS - [0:0]\n:LOOP - [0:0]\n"
        f":PATHS - [0:0]\n:NFQ_GUARD - [0:0]\n-A PREROUTING {rule}\n-A PREROUTING -j NFQ_GUARD\n"
        "-A PREROUTING -j DROP\n-A DIVERT -j MARKS\n-A DIVERT -j ACCEPT\n"
        "-A MARKS -j MARK --set-xmark 0x2/0x2\n-A MARKS -j RETURN\n-A LOOP -j LOOP\n"
        "-A PATHS -m rpfilter -j RETURN\n-A PATHS -j DROP\nCOMMIT\n"
    )
    found = remarks(wanted(RulesSpec(), Backend.NFT), live, Family.IPV4, Backend.NFT)
    assert {one.kind for one in found} == kinds


@pytest.mark.parametrize(
    ("queues", "says"),
    [("7:9", "are not judged"), ("1:2", ""), ("2:5", "matches, unless it gets to a queue of ours")],
)
def test_a_rule_before_ours_that_leads_to_some_of_our_queues(queues: str, says: str) -> None:
    live = parse(
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:NFQ_GUARD - [0:0]\n"
        f"-A PREROUTING -p udp -j NFQUEUE --queue-balance {queues}\n"
        "-A PREROUTING -j NFQ_GUARD\nCOMMIT\n"
    )
    spec = RulesSpec(first_queue=0, last_queue=3)
    found = remarks(wanted(spec, Backend.NFT), live, Family.IPV4, Backend.NFT)
    assert len(found) == bool(says)
    assert all(says in one.detail for one in found)


def test_the_rule_that_takes_invalid_packets_is_named_with_its_chain() -> None:
    live = parse(
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:PROXY - [0:0]\n:NFQ_GUARD - [0:0]\n"
        "-A PREROUTING -j PROXY\n-A PREROUTING -j NFQ_GUARD\n"
        "-A PROXY -p tcp -m mark --mark 0x200 -j TPROXY --on-port 9\nCOMMIT\n"
    )
    (found,) = remarks(wanted(RulesSpec(), Backend.NFT), live, Family.IPV4, Backend.NFT)
    assert found.detail == (
        "rule 1 leads to `-p tcp -m mark --mark 0x200 -j TPROXY --on-port 9` in chain PROXY: "
        "what that matches is not judged"
    )


def test_a_policy_that_our_verdict_skips_is_named() -> None:
    text = "*mangle\n:PREROUTING DROP [0:0]\n:NFQ_GUARD - [0:0]\n{}COMMIT\n"
    should = wanted(RulesSpec(fail_mode=FailMode.KERNEL_DROP), Backend.NFT)
    for rule, kinds in (("", set()), ("-A PREROUTING -j NFQ_GUARD\n", {Kind.POLICY_SKIPPED})):
        found = remarks(should, parse(text.format(rule)), Family.IPV4, Backend.NFT)
        assert {one.kind for one in found} == kinds


def test_a_roll_back_restores_each_jump_where_it_was() -> None:
    """An older release had its jumps first."""
    for place, line in (("first", "-I OUTPUT 1 -j NFQ_GUARD"), ("last", "-A OUTPUT -j NFQ_GUARD")):
        rules = ["-A OUTPUT -j NFQ_GUARD\n", "-A OUTPUT -j ACCEPT\n"]
        ordered = rules if place == "first" else rules[::-1]
        text = f"*mangle\n:OUTPUT ACCEPT [0:0]\n:NFQ_GUARD - [0:0]\n{''.join(ordered)}COMMIT\n"
        assert line in own_of(parse(text))
