# SPDX-License-Identifier: MIT
"""The doctor's findings for random rule sets match the kernel's handling of an INVALID packet."""

from collections.abc import Iterator

import pytest

from nfq_guard.doctor import host_rules, path
from nfq_guard.doctor.check import Status
from nfq_guard.doctor.rule_model import Act
from nfq_guard.firewall.xtables import System
from tests.fuzz_rules.__main__ import run
from tests.fuzz_rules.compare import Outcome, Router
from tests.fuzz_rules.generate import Part, RuleSet
from tests.support.listings import fate_of

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_rule_sets(seed: int) -> None:
    """`make fuzz-rules` runs many more."""
    tally = run(10, seed)
    assert tally.failures == []


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with Router() as made:
        yield made


def _table(*chains: str) -> str:
    sets = "set bad { type ipv4_addr; flags dynamic,timeout; size 9; timeout 1m; }"
    return "\n".join(("table inet fz {", sets, *chains, "}\n"))


HEAD = "type filter hook forward priority 0; policy accept;"
# Rules by which an INVALID packet adds its sender to a list of those whose packets are dropped.
LISTS = (
    Part(
        "nft",
        _table(
            f"chain c {{ {HEAD}\nct state invalid add @bad {{ ip saddr }}\nip saddr @bad drop\n}}"
        ),
    ),
    Part(
        "nft",
        _table(
            "chain drops { drop\n}",
            "chain notes { update @bad { ip saddr timeout 10s }\n}",
            "chain early { type filter hook prerouting priority 0;\nct state invalid jump notes\n}",
            f"chain c {{ {HEAD}\nip saddr @bad jump drops\n}}",
        ),
    ),
    Part(
        "iptables-legacy",
        "*filter\n-A FORWARD -m conntrack --ctstate INVALID -m recent --name bad --set\n"
        "-A FORWARD -m recent --name bad --rcheck --seconds 60 -j DROP\nCOMMIT\n",
    ),
)


def check_of_dropped(router: Router, part: Part, *before: str) -> None:
    """The kernel drops an INVALID packet, here after a command, and the doctor says it may."""
    rules = RuleSet([part])
    port = router.open(4)
    try:
        assert router.load(rules)
        assert not before or System().run(list(before), "").status == 0
        assert router.outcome(4, port) == Outcome(Act.DROP, None)
        check = fate_of(list(path.walk(host_rules.read().tables, 4)), "forward")
    finally:
        router.clear(rules)
        System().run(["iptables-legacy", "-t", "mangle", "-F"], "")
    assert check.status is Status.WARNING
    assert "or dropped by" in check.what


@pytest.mark.parametrize("part", LISTS)
def test_a_list_that_invalid_packets_fill(router: Router, part: Part) -> None:
    check_of_dropped(router, part)


RESTORES = (
    Part(
        "nft",
        _table(
            "chain early { type filter hook prerouting priority -140;\n"
            "meta mark set ct mark map { 0x1 : 0x10, 0x2 : 0x20 }\n}",
            f"chain c {{ {HEAD}\nmeta mark != 0x10 drop\n}}",
        ),
    ),
    Part(
        "nft",
        _table(
            "chain early { type filter hook prerouting priority -140;\nmeta mark set ct mark\n}",
            f"chain c {{ {HEAD}\nmeta mark 0 drop\n}}",
        ),
    ),
    Part(
        "iptables-legacy",
        "*mangle\n-A PREROUTING -j CONNMARK --restore-mark\nCOMMIT\n"
        "*filter\n-A FORWARD -m mark --mark 0 -j DROP\nCOMMIT\n",
    ),
)


@pytest.mark.parametrize("part", RESTORES)
def test_the_mark_of_a_connection_that_invalid_packets_lack(router: Router, part: Part) -> None:
    check_of_dropped(router, part, "conntrack", "-U", "-f", "ipv4", "--mark", "1")
