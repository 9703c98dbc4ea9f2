# SPDX-License-Identifier: MIT
"""Rules of other programs that need modules of the kernel; run by name in the machine.

Rules of iptables that ask an ipset or fill one, and the statement `queue` of nftables: an INVALID
packet and its twin of a known connection go through each, and the doctor's findings are held
against what became of them (`tests/fuzz_rules`).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from nfq_guard.doctor import fate, host_rules
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.marks import marks
from nfq_guard.doctor.rule_model import Act
from nfq_guard.firewall import UNJUDGED_MARK, Backend, FailMode, RulesSpec
from nfq_guard.firewall.xtables import System
from nfq_guard.flows.open import open_lookup
from tests.fuzz_rules.compare import Outcome, Router, Tally, compare
from tests.fuzz_rules.generate import Part, RuleSet

BACKENDS: Final = ("iptables-legacy", "iptables-nft")
FAMILIES: Final = {4: "inet", 6: "inet6"}
DROPPED: Final = Outcome(Act.DROP, None)
PASSED: Final = Outcome(None, None)
INVALID: Final = "-A FORWARD -m conntrack --ctstate INVALID"


class Kind(NamedTuple):
    """A kind of set and a match, with the elements by which packets match and do not."""

    kind: str
    match: str
    by: dict[int, str]
    not_by: dict[int, str]


KINDS: Final = (
    Kind(
        "hash:ip",
        "--match-set a% src",
        {4: "192.0.2.1", 6: "2001:db8::1"},
        {4: "192.0.2.2", 6: "2001:db8::2"},
    ),
    Kind(
        "hash:net",
        "! --match-set a% dst",
        {4: "203.0.113.0/24", 6: "2001:db8:2::/48"},
        {4: "198.51.100.0/24", 6: "2001:db8:1::/48"},
    ),
    Kind(
        "hash:ip,port",
        "--match-set a% dst,dst",
        {4: "198.51.100.1,tcp:80", 6: "2001:db8:1::1,tcp:80"},
        {4: "198.51.100.1,tcp:81", 6: "2001:db8:1::1,tcp:81"},
    ),
)


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    open_lookup()[0].close()  # loads the module with the sysctls
    with Router() as made:
        yield made


@pytest.fixture(autouse=True)
def sets(router: Router) -> Iterator[None]:
    """Removes what `make` has made."""
    del router
    yield
    ipset("destroy")


def ipset(*words: str, stdin: str = "") -> None:
    done = System().run(["ipset", *words], stdin)
    assert done.status == 0, (words, stdin, done)


def make(name: str, kind: str, elements: dict[int, str]) -> None:
    """A set of each family, `name` and its number, each with one element or none."""
    lines = []
    for family, domain in FAMILIES.items():
        lines.append(f"create {name}{family} {kind.replace('%', domain)}")
        if family in elements:
            lines.append(f"add {name}{family} {elements[family]}")
    ipset("restore", stdin="\n".join((*lines, "")))


def table(backend: str, *rules: str) -> Part:
    """Rules of the table filter; `%` stands for the number of each family in turn.

    The program of one family skips the rules that begin with the number of the other.
    """
    lines = [f"-{family} {rule.replace('%', str(family))}" for family in FAMILIES for rule in rules]
    return Part(backend, "\n".join(("*filter", *lines, "COMMIT", "")))


def forwarded(router: Router, part: Part, family: int) -> tuple[Outcome, Check]:
    """What becomes of the two packets, and what the doctor says of FORWARD."""
    rules, tally = RuleSet([part], exact=False), Tally()
    compare(router, rules, family, tally)
    assert (tally.compared, tally.failures) == (1, [])
    try:
        assert router.load(rules)
        read = host_rules.read()
    finally:
        router.clear(rules)
    (check,) = (
        each
        for each in fate.checks(read.path(), unnamed=read.unnamed())
        if each.id == "fate.forward" and f"IPv{family}" in each.what
    )
    (outcome,) = tally.outcomes
    return outcome, check


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_packets_in_a_set_and_out_of_it(router: Router, backend: str, kind: Kind) -> None:
    """A set may change at any time, so the doctor says that the rule may take the packet."""
    make("a", f"{kind.kind} family %", kind.by)
    make("b", f"{kind.kind} family %", kind.not_by)
    part = table(backend, f"{INVALID} -m set {kind.match} -j DROP")
    for family in FAMILIES:
        for expected in (DROPPED, PASSED):
            outcome, check = forwarded(router, part, family)
            assert outcome == expected
            assert check.status is Status.WARNING
            assert f"accepted, or dropped by `{INVALID.removeprefix('-A FORWARD ')}" in check.what
            assert f"depends on: {kind.match.replace('%', str(family))}" in check.what
            ipset("swap", f"a{family}", f"b{family}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_set_that_invalid_packets_fill(router: Router, backend: str) -> None:
    make("bad", "hash:ip family %", {})
    part = table(
        backend,
        f"{INVALID} -j SET --add-set bad% src",
        "-A FORWARD -m set --match-set bad% src -j DROP",
    )
    outcome, check = forwarded(router, part, 4)
    assert outcome == DROPPED
    assert check.status is Status.WARNING
    assert "or dropped by" in check.what


def test_a_set_that_marks_packets(router: Router) -> None:
    """The mark of a set's element may have the bit of unjudged packets."""
    element = f"192.0.2.1 skbmark {UNJUDGED_MARK:#x}/{UNJUDGED_MARK:#x}"
    make("m", "hash:ip family % skbinfo", {4: element})
    chain = ["iptables-legacy", "-w", "-t", "mangle", "-A", "FORWARD"]
    rule = [*chain, "-j", "SET", "--map-set", "m4", "src", "--map-mark"]
    test = f"-m mark --mark {UNJUDGED_MARK:#x}/{UNJUDGED_MARK:#x} -j DROP"
    dropping = RuleSet([table("iptables-legacy", f"-A FORWARD {test}")])
    port = router.open(4)
    assert System().run(rule, "").status == 0
    try:
        assert router.load(dropping)
        assert router.outcome(4, port) == Outcome(Act.DROP, Act.DROP)
        spec = RulesSpec(fail_mode=FailMode.KERNEL_DROP)
        check, _cleared = marks(host_rules.read().path(), spec, Backend.LEGACY)
    finally:
        router.clear(dropping)
        rule[rule.index("-A")] = "-D"
        assert System().run(rule, "").status == 0
    assert check.status is Status.WARNING
    assert "--map-set m4 src --map-mark` (legacy table mangle" in check.what


@pytest.mark.parametrize(
    ("statement", "expected"), [("queue num 77", DROPPED), ("queue num 77 bypass", PASSED)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_queue_without_a_program(
    router: Router, family: int, statement: str, expected: Outcome
) -> None:
    chain = "type filter hook forward priority 0;"
    part = Part("nft", f"table inet fz {{\nchain c {{ {chain} ct state invalid {statement}; }}\n}}")
    outcome, check = forwarded(router, part, family)
    assert outcome == expected
    assert check.status is Status.WARNING
    assert "sent elsewhere (queue 77)" in check.what
