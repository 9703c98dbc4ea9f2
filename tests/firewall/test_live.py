# SPDX-License-Identifier: MIT
"""Our rules in real namespaces: installed, verified, removed."""

import threading
from contextlib import suppress

import pytest

from nfq_guard.errors import BusyError, UnavailableError
from nfq_guard.firewall import BOTH_FAMILIES, Backend, FailMode, Family, Kind, RulesSpec
from tests.firewall.conftest import Host, Wire, received

pytestmark = pytest.mark.kernel

FOREIGN = """\
*mangle
:KUBE-MARK - [0:0]
-A PREROUTING -i far+ -m comment --comment "kube's: \\"quoted\\"" -j KUBE-MARK
-A OUTPUT -m conntrack --ctstate INVALID -j DROP
-A KUBE-MARK -j MARK --set-xmark 0x4000/0x4000
COMMIT
*filter
:FORWARD DROP [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"""

SPECS = (
    RulesSpec(),
    RulesSpec(first_queue=4, last_queue=7, cpu_fanout=True, max_rate_pps=30_000),
    RulesSpec(fail_mode=FailMode.CLOSED, max_rate_pps=7),
    RulesSpec(fail_mode=FailMode.KERNEL_DROP, max_rate_pps=1_000_000, unjudged_mark=0x10),
)


def _foreign_only(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if "NFQ_GUARD" not in line]
    # Listing the rules creates empty tables.
    return [line for line in lines if line[0] == "-" or (line[0] == ":" and " ACCEPT" not in line)]


@pytest.mark.parametrize("spec", SPECS)
def test_what_was_installed_is_as_it_should_be(
    guarded: Host, backend: Backend, spec: RulesSpec
) -> None:
    with guarded.ns.entered():
        firewall = guarded.firewall(spec, backend)
        assert len(firewall.install().done) == 2
        assert firewall.verify() == []
        assert firewall.install().done == ()


def test_a_second_install_keeps_the_counters(wire: Wire, backend: Backend) -> None:
    peer, guarded = wire.peer, wire.guarded
    with guarded.ns.entered():
        guarded.firewall(backend=backend).install()
    for family, to in ((Family.IPV4, "10.77.0.2"), (Family.IPV6, "fd77::2")):
        with guarded.listen(family) as inside:
            peer.send_invalid(family, to, count=3)
            assert received(inside) == 3
        before = guarded.packets(backend, family, "-j NFQUEUE")
        with guarded.ns.entered():
            guarded.firewall(backend=backend).install()
        assert guarded.packets(backend, family, "-j NFQUEUE") == before >= 3


def test_rules_of_others_stay_as_they_are(guarded: Host, backend: Backend) -> None:
    for family in BOTH_FAMILIES:
        guarded.restore(backend, family, FOREIGN)
    before = [guarded.save(backend, family) for family in BOTH_FAMILIES]
    with guarded.ns.entered():
        for spec in SPECS:
            guarded.firewall(spec, backend).install()
            during = [guarded.save(backend, family) for family in BOTH_FAMILIES]
            assert [_foreign_only(text) for text in during] == [_foreign_only(t) for t in before]
        assert guarded.firewall().remove().done
        assert not guarded.firewall().remove().done
    assert [guarded.save(backend, family) for family in BOTH_FAMILIES] == before


def test_a_new_specification_takes_the_place_of_the_old(guarded: Host, backend: Backend) -> None:
    with guarded.ns.entered():
        for spec in (*SPECS, *reversed(SPECS)):
            guarded.firewall(spec, backend).install()
            assert guarded.firewall(spec, backend).verify() == []


@pytest.mark.parametrize(
    "leftover",
    [
        "*mangle\n:NFQ_GUARD - [0:0]\nCOMMIT\n",
        "*mangle\n:NFQ_GUARD - [0:0]\n-A OUTPUT -j NFQ_GUARD\n-A OUTPUT -j NFQ_GUARD\nCOMMIT\n",
        "*filter\n:NFQ_GUARD_DROP - [0:0]\n-A NFQ_GUARD_DROP -j DROP\nCOMMIT\n",
        "*nat\n:NFQ_GUARD_OLD - [0:0]\n:NFQ_GUARD_OLDER - [0:0]\n"
        "-A OUTPUT -j NFQ_GUARD_OLD\n-A NFQ_GUARD_OLD -g NFQ_GUARD_OLDER\nCOMMIT\n",
    ],
    ids=["chain", "two-jumps", "fallback", "nested"],
)
def test_what_a_crash_left_is_put_right_and_removed(
    guarded: Host, backend: Backend, family: Family, leftover: str
) -> None:
    guarded.restore(backend, family, leftover)
    with guarded.ns.entered():
        firewall = guarded.firewall()
        assert firewall.choice().backend is backend
        firewall.install()
        assert firewall.verify() == []
        guarded.restore(backend, family, leftover)
        firewall.remove()
    assert "NFQ_GUARD" not in guarded.save(backend, family)


def test_auto_goes_where_others_have_their_rules(guarded: Host, backend: Backend) -> None:
    guarded.restore(backend, Family.IPV4, FOREIGN)
    with guarded.ns.entered():
        choice = guarded.firewall().choice()
    assert choice.backend is backend
    assert "rules and chains of others" in choice.why


def test_auto_without_rules_asks_the_program(guarded: Host) -> None:
    said = guarded.ns.run("iptables", "-V").stdout
    with guarded.ns.entered():
        choice = guarded.firewall().choice()
    assert choice.backend is (Backend.NFT if "nf_tables" in said else Backend.LEGACY)
    assert "iptables -V" in choice.why


def test_the_other_backend_is_cleaned_by_install(guarded: Host, backend: Backend) -> None:
    """Rules in both would queue each packet twice."""
    with guarded.ns.entered():
        guarded.firewall(backend=backend.other).install()
        firewall = guarded.firewall(backend=backend)
        assert Kind.LEFTOVER in {one.kind for one in firewall.verify()}
        firewall.install()
        assert firewall.verify() == []
    for family in BOTH_FAMILIES:
        assert "NFQ_GUARD" not in guarded.save(backend.other, family)


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("-F", "NFQ_GUARD"), {Kind.MISSING_RULE}),
        (("-D", "PREROUTING", "1"), {Kind.MISSING_JUMP}),
        (("-A", "PREROUTING", "-j", "NFQ_GUARD"), {Kind.DUPLICATE_JUMP}),
        (("-I", "PREROUTING", "-j", "NFQ_GUARD"), {Kind.DUPLICATE_JUMP, Kind.CHANGED_JUMP}),
        (("-A", "PREROUTING", "-j", "MARK", "--set-mark", "9"), {Kind.JUMP_NOT_LAST}),
        (("-R", "NFQ_GUARD", "1", "-j", "NFQUEUE", "--queue-num", "9"), {Kind.CHANGED_RULE}),
        (("-A", "NFQ_GUARD", "-j", "DROP"), {Kind.EXTRA_RULE}),
        (("-A", "INPUT", "-j", "NFQ_GUARD"), {Kind.LEFTOVER}),
        (("-N", "NFQ_GUARD_OTHER"), {Kind.LEFTOVER}),
    ],
)
def test_verify_names_what_differs(
    guarded: Host, backend: Backend, family: Family, words: tuple[str, ...], kinds: set[Kind]
) -> None:
    with guarded.ns.entered():
        firewall = guarded.firewall(backend=backend)
        firewall.install()
        guarded.ipt(backend, family, "-t", "mangle", *words)
        found = firewall.verify()
        assert {one.kind for one in found} == kinds
        assert {one.family for one in found} == {family}
        firewall.install()
        assert firewall.verify() == []


def test_verify_names_a_chain_that_is_gone(guarded: Host, backend: Backend) -> None:
    with guarded.ns.entered():
        kinds = [one.kind for one in guarded.firewall(backend=backend).verify()]
    chains = 1 if backend is Backend.LEGACY else 2
    assert kinds.count(Kind.MISSING_CHAIN) == 2 * chains
    assert kinds.count(Kind.MISSING_JUMP) == len(kinds) - 2 * chains == 4


def test_the_fallback_stays_first_and_the_queue_last(guarded: Host, backend: Backend) -> None:
    """A rule that accepts in filter must not come before the fallback."""
    spec = RulesSpec(fail_mode=FailMode.KERNEL_DROP)
    with guarded.ns.entered():
        firewall = guarded.firewall(spec, backend)
        firewall.install()
        for table, where in (("filter", "-I"), ("mangle", "-A")):
            guarded.ipt(backend, Family.IPV4, "-t", table, where, "FORWARD", "-j", "ACCEPT")
            guarded.ipt(backend, Family.IPV4, "-t", "mangle", "-I", "PREROUTING", "-j", "ACCEPT")
        assert {one.kind for one in firewall.verify()} == {Kind.JUMP_NOT_FIRST}
        assert {one.kind for one in firewall.remarks()} == {Kind.TAKEN_BEFORE}
        firewall.install()
        assert firewall.verify() == []


NATIVE = """\
table ip mangle {
	chain PREROUTING {
		type filter hook prerouting priority mangle; policy accept;
		ct state established accept
	}
}
"""


def test_a_table_that_iptables_cannot_read_is_left_alone(guarded: Host) -> None:
    """iptables-nft-save cannot show it, so each install would add its jumps again."""
    guarded.ns.run("nft", "-f", "-", stdin=NATIVE)
    before = guarded.ns.run("nft", "list", "ruleset").stdout
    with guarded.ns.entered():
        forced = guarded.firewall(backend=Backend.NFT)
        for deed in (forced.install, forced.verify):
            with pytest.raises(UnavailableError, match="table mangle was made with nft"):
                deed()
        firewall = guarded.firewall()
        assert firewall.choice().backend is Backend.LEGACY
        changes = firewall.install()
        assert "table mangle was made with nft" in changes.notes[0]
        assert firewall.verify() == []
        assert firewall.install().done == ()
        firewall.remove()
    assert guarded.ns.run("nft", "list", "ruleset").stdout == before


@pytest.mark.parametrize(
    ("table", "chain", "base"),
    [
        ("ip mangle", "PREROUTING", "type filter hook prerouting priority -140;"),
        ("ip6 mangle", "PREROUTING", "type nat hook prerouting priority -150;"),
        ("ip mangle", "PREROUTING", ""),
        ("ip security", "OUTPUT", "type filter hook output priority 7;"),
    ],
)
def test_a_chain_that_iptables_cannot_use_is_named(
    guarded: Host, table: str, chain: str, base: str
) -> None:
    rules = f"table {table} {{\nchain {chain} {{\n{base}\n}}\n}}\n"
    guarded.ns.run("nft", "-f", "-", stdin=rules)
    with guarded.ns.entered():
        firewall = guarded.firewall(backend=Backend.NFT)
        with pytest.raises(UnavailableError, match=f"^nftables table {table} has a chain {chain} "):
            firewall.install()
    assert "NFQ_GUARD" not in guarded.ns.run("nft", "list", "ruleset").stdout


def test_native_chains_beside_those_of_iptables_do_no_harm(guarded: Host) -> None:
    chain = "chain input { type filter hook input priority 5; ip saddr 10.0.0.1 drop; }"
    guarded.ns.run("nft", f"table ip filter {{ {chain}; }}")
    with guarded.ns.entered():
        firewall = guarded.firewall(RulesSpec(fail_mode=FailMode.KERNEL_DROP), Backend.NFT)
        firewall.install()
        assert firewall.verify() == []
        assert firewall.install().done == ()
        firewall.remove()
    assert "ip saddr 10.0.0.1 drop" in guarded.ns.run("nft", "list", "ruleset").stdout


def test_two_that_install_at_once_leave_one_jump(guarded: Host, backend: Backend) -> None:
    def install() -> None:
        # On a slow machine the last of them waits longer than one waits for another.
        while True:
            with suppress(BusyError):
                guarded.firewall(backend=backend).install()
                return

    with guarded.ns.entered():
        installers = [threading.Thread(target=install) for _ in range(4)]
        for one in installers:
            one.start()
        for one in installers:
            one.join()
        assert guarded.firewall(backend=backend).verify() == []
