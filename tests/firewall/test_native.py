# SPDX-License-Identifier: MIT
"""The native table: its text, when it is chosen, and the differences that `verify` finds.

Tests marked kernel load it with a counter instead of `queue`, which this kernel may lack.
`tests/kernels/native_rules.py` loads the whole table on Debian's kernels.
"""

import json
from contextlib import AbstractContextManager, nullcontext

import pytest

from nfq_guard.errors import BusyError, PrivilegeError, UnavailableError
from nfq_guard.firewall import (
    BOTH_FAMILIES,
    Backend,
    FailMode,
    Family,
    Firewall,
    Kind,
    Native,
    RulesSpec,
    native,
    nft_program,
)
from nfq_guard.firewall.native import NativeTable, render
from nfq_guard.firewall.rule_counters import RuleCounters
from nfq_guard.firewall.xtables import Result, System
from tests.firewall.conftest import Host

OURS = "nfq_guard"
IPTABLES = frozenset({"iptables", "iptables-nft-save", "iptables-nft-restore"})


class NftHost:
    """A host with nft, which has the base chains `chains` and our table if `rules` is not None."""

    def __init__(
        self,
        *chains: tuple[str, str, str],
        queue: bool = True,
        rules: list[object] | None = None,
        programs: frozenset[str] = frozenset({"nft"}),
        caps: int = 1 << 12,
        saved: str = "",
    ) -> None:
        self.chains = chains
        self.queue = queue
        self.rules = rules
        self.programs = programs
        self.caps = caps
        self.saved = saved
        self.loaded: list[str] = []

    def find(self, program: str) -> bool:
        return program in self.programs

    def run(self, argv: list[str], stdin: str) -> Result:
        match argv:
            case ["nft", "-c", "-f", "-"]:
                return Result(0 if self.queue else 1, "", "Error: No such file")
            case ["nft", "-j", "list", "chains"]:
                chains = [
                    {"family": family, "table": table, "name": name, "hook": name.lower()}
                    for family, table, name in self.chains
                ]
                found: list[object] = [{"metainfo": {}}, {"chain": {"name": "not-a-base-chain"}}]
                found += [{"chain": chain} for chain in chains]
                return Result(0, json.dumps({"nftables": found}), "")
            case ["nft", "-j", "-t", "list", "table", *_]:
                return Result(0, json.dumps({"nftables": self.rules}), "")
            case ["nft", "-f", "-"] | ["nft", "delete", *_]:
                self.loaded.append(stdin or " ".join(argv))
                return Result(0, "", "")
            case [program, *_] if program.endswith("-save"):
                return Result(0, self.saved, "")
        return Result(0, "", "")

    def capabilities(self) -> int:
        return self.caps

    def has_ipv6(self) -> bool:
        return False

    def has_legacy_mangle(self) -> bool:
        return self.legacy_mangle

    legacy_mangle = False

    def has_nft_table(self, name: str) -> bool:
        return self.rules is not None and name == OURS

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_the_defaults_queue_after_mangle_with_bypass() -> None:
    text = render(RulesSpec(), BOTH_FAMILIES)
    assert "queue num 0 bypass comment" in text
    assert text.count("priority -149; policy accept;") == 2
    assert "mark" not in text
    assert "nfproto" not in text
    assert "meta nfproto ipv6 ct state invalid" in render(RulesSpec(), (Family.IPV6,))


@pytest.mark.parametrize(
    ("mode", "queue", "shed", "marks"),
    [
        (FailMode.OPEN, "queue num 0 bypass comment", "counter name shed return", False),
        (FailMode.CLOSED, "queue num 0 comment", "counter name shed drop", False),
        (FailMode.KERNEL_DROP, "queue num 0 bypass comment", "counter name shed return", True),
    ],
)
def test_each_fail_mode_decides_over_bypass_shedding_and_marks(
    mode: FailMode, queue: str, shed: str, marks: bool
) -> None:
    text = render(RulesSpec(fail_mode=mode, max_rate_pps=1000), BOTH_FAMILIES)
    assert queue in text
    assert f"limit rate over 1000/second burst 100 packets {shed}" in text
    assert ("meta mark set meta mark or 0x1000" in text) is marks
    assert text.count("meta mark and 0x1000 == 0x1000 counter name unjudged drop") == 2 * marks
    assert text.count("priority -148;") == 2 * marks


def test_several_queues_are_balanced() -> None:
    spec = RulesSpec(first_queue=2, last_queue=5)
    assert "queue num 2-5 bypass comment" in render(spec, BOTH_FAMILIES)
    spec = RulesSpec(first_queue=2, last_queue=5, cpu_fanout=True)
    assert "queue num 2-5 bypass,fanout comment" in render(spec, BOTH_FAMILIES)


@pytest.mark.parametrize(
    ("host", "place", "why"),
    [
        (NftHost(rules=[]), Native.NFTABLES, "holds our rules already"),
        (NftHost(), Native.NFTABLES, "iptables is not installed"),
        (
            NftHost(("inet", "fw", "input"), programs=IPTABLES | {"nft"}),
            Native.NFTABLES,
            "1 base chains of others",
        ),
        (
            NftHost(("inet", "fw", "input"), programs=IPTABLES | {"nft"}, queue=False),
            Backend.NFT,
            "only the nft programs",
        ),
        (
            NftHost(
                ("ip", "filter", "INPUT"), ("inet", OURS, "output"), programs=IPTABLES | {"nft"}
            ),
            Backend.NFT,
            "only the nft programs",
        ),
        (
            NftHost(
                ("inet", "fw", "input"),
                programs=IPTABLES | {"nft"},
                saved="*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n",
            ),
            Backend.NFT,
            "only the nft programs",
        ),
    ],
)
def test_native_rules_are_for_hosts_with_native_rules_alone(
    host: NftHost, place: Backend | Native, why: str
) -> None:
    choice = Firewall(RulesSpec(), runner=host).choice()
    assert choice.backend is place
    assert why in choice.why


def test_a_flush_of_all_rules_changes_no_choice() -> None:
    """A reload of nftables flushes them for a moment."""
    host = NftHost(("inet", "fw", "input"), programs=IPTABLES | {"nft"})
    firewall = Firewall(RulesSpec(), runner=host)
    assert firewall.choice().backend is Native.NFTABLES
    host.chains = ()
    assert firewall.choice().backend is Native.NFTABLES
    assert Firewall(RulesSpec(), runner=host).choice().backend is Backend.NFT


def test_without_queue_nothing_is_installed_and_the_option_is_named() -> None:
    host = NftHost(queue=False)
    with pytest.raises(UnavailableError, match="CONFIG_NFT_QUEUE"):
        Firewall(RulesSpec(), Native.NFTABLES, runner=host).install()
    with pytest.raises(UnavailableError, match="CONFIG_NFT_QUEUE"):
        Firewall(RulesSpec(), Native.NFTABLES, runner=host).require()
    with pytest.raises(UnavailableError, match="program iptables"):
        Firewall(RulesSpec(), runner=host).require()
    with pytest.raises(UnavailableError, match="program iptables-legacy-save"):
        Firewall(RulesSpec(), Backend.LEGACY, runner=host).require()
    for backend in (None, Native.NFTABLES):
        Firewall(RulesSpec(), backend, runner=NftHost()).require()
    Firewall(RulesSpec(), Backend.NFT, runner=NftHost(queue=False, programs=IPTABLES)).require()
    assert host.loaded == []
    with pytest.raises(UnavailableError, match="program iptables"):
        Firewall(RulesSpec(), runner=host).choice()
    with pytest.raises(PrivilegeError, match="nft needs CAP_NET_ADMIN"):
        Firewall(RulesSpec(), Native.NFTABLES, runner=NftHost(caps=0)).install()


def test_it_is_shown_as_nft_takes_it() -> None:
    shown = Firewall(RulesSpec(offload_entries=8), Native.NFTABLES, runner=NftHost()).show()
    assert render(RulesSpec(), BOTH_FAMILIES) in shown
    assert "nfq_guard_offload" in shown
    assert "iptables" not in shown


@pytest.mark.parametrize(
    ("num", "queue"), [(3, 3), ({"range": [3, 5]}, 3), ({"set": [1]}, 0)], ids=str
)
def test_the_table_of_another_daemon_is_left_alone(num: object, queue: int) -> None:
    rule = {"rule": {"chain": "judge", "expr": [{"queue": {"num": num}}, {"accept": None}]}}
    host = NftHost(rules=[{"metainfo": {}}, rule])
    spec = RulesSpec(first_queue=7, last_queue=7)
    firewall = Firewall(spec, runner=host, served_by_others=lambda _: {queue: "x (pid 7)"})
    for deed in (firewall.install, firewall.remove):
        with pytest.raises(BusyError, match=rf"queue {queue}, which x \(pid 7\) serves"):
            deed()
    assert host.loaded == []


@pytest.mark.parametrize(
    ("rules", "holds"),
    [
        ([], False),
        ([{"rule": {"chain": "judge", "expr": [{"queue": {"num": 0}}]}}], True),
        ([{"rule": {"chain": "judge", "expr": [{"queue": {"flags": "bypass"}}]}}], False),
        ([{"rule": {"chain": "judge", "expr": [{"queue": {"flags": ["bypass"]}}]}}], False),
        ([{"chain": {"name": "unjudged_sent"}}], True),
    ],
)
def test_the_live_table_tells_whether_it_drops_unjudged_packets(
    rules: list[object], *, holds: bool
) -> None:
    assert Firewall(RulesSpec(), runner=NftHost(rules=rules)).holds_back() is holds


@pytest.mark.parametrize(
    "output",
    [
        '{"nftables": [{"metainfo": {"version": "1.0',
        "[]",
        '{"nftables": 7}',
        '{"nftables": ["chain"]}',
        '{"nftables": [{"chain": {"family": "inet"}}]}',
        '{"nftables": [{"rule": {"chain": "judge"}}]}',
        '{"nftables": [{"rule": {"chain": "judge", "expr": 3}}]}',
        '{"nftables": [{"set": "name"}]}',
        '{"nftables": [{"chain": {"name": {"a": 1}}}]}',
        "[" * 9999,
    ],
    ids=range(10),
)
def test_a_listing_that_is_cut_or_of_another_shape_is_an_error(output: str) -> None:
    with pytest.raises(UnavailableError, match=r"^offload: the output of nft -j cannot be read: "):
        nft_program.listed(output, "offload")


def test_counters_are_read_by_name() -> None:
    counters = [{"counter": {"name": name, "packets": n}} for name, n in (("shed", 5), ("x", 9))]
    counters.append({"counter": {"name": "unjudged", "packets": 7}})
    host = NftHost(rules=[*counters])
    counted = Firewall(RulesSpec(), runner=host).rule_counters()
    assert counted == RuleCounters(shed=5, unjudged=7)
    assert NativeTable(NftHost(), RulesSpec(), BOTH_FAMILIES).rule_counters() == RuleCounters()


def _load(guarded: Host, spec: RulesSpec) -> None:
    text = render(spec, BOTH_FAMILIES)
    for queue in ("queue num 0 bypass", "queue num 0"):
        text = text.replace(queue, "counter")
    guarded.ns.run("nft", "-f", "-", stdin=text)


@pytest.mark.kernel
@pytest.mark.parametrize(
    "spec",
    [
        RulesSpec(),
        RulesSpec(fail_mode=FailMode.KERNEL_DROP, max_rate_pps=7),
        RulesSpec(fail_mode=FailMode.CLOSED, max_rate_pps=1_000_000),
    ],
)
def test_what_was_loaded_is_as_it_should_be(guarded: Host, spec: RulesSpec) -> None:
    with guarded.ns.entered():
        _load(guarded, spec)
        firewall = Firewall(spec)
        assert firewall.choice().backend is Native.NFTABLES
        assert firewall.verify() == []
        assert firewall.install().done == ()
        assert firewall.remarks() == []
        assert firewall.rule_counters() == RuleCounters()
        other = Firewall(RulesSpec(unjudged_mark=1, fail_mode=FailMode.KERNEL_DROP))
        assert {Kind.CHANGED_RULE} <= {one.kind for one in other.verify()}
        assert firewall.remove().done == ("nft: removed the table inet nfq_guard",)
        assert firewall.remove().done == ()


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ("delete table inet nfq_guard", {Kind.MISSING_CHAIN}),
        ("flush chain inet nfq_guard judge", {Kind.MISSING_RULE}),
        ("flush chain inet nfq_guard output", {Kind.MISSING_RULE}),
        ("insert rule inet nfq_guard judge accept", {Kind.EXTRA_RULE}),
        ("add chain inet nfq_guard other", {Kind.LEFTOVER}),
        (
            "delete chain inet nfq_guard output; add chain inet nfq_guard output "
            "{ type filter hook output priority 9; policy drop; }",
            {Kind.MISSING_RULE, Kind.CHANGED_JUMP},
        ),
    ],
)
def test_verify_names_what_differs(guarded: Host, words: str, kinds: set[Kind]) -> None:
    with guarded.ns.entered():
        _load(guarded, RulesSpec())
        guarded.ns.run("nft", "-f", "-", stdin=words.replace("; add", "\nadd"))
        found = Firewall(RulesSpec(), Native.NFTABLES).verify()
    assert {one.kind for one in found} == kinds
    assert all(str(one).startswith(f"{one.kind}: nft inet nfq_guard") for one in found)


@pytest.mark.kernel
def test_iptables_takes_the_place_of_the_native_table(guarded: Host, backend: Backend) -> None:
    """Rules in both would queue each packet twice."""
    with guarded.ns.entered():
        _load(guarded, RulesSpec())
        firewall = guarded.firewall(backend=backend)
        assert Kind.LEFTOVER in {one.kind for one in firewall.verify()}
        assert "nft: removed the table inet nfq_guard" in firewall.install().done
        assert firewall.verify() == []


@pytest.mark.kernel
def test_a_kernel_without_queue_is_told_from_one_with(guarded: Host) -> None:
    text = "table inet t { chain c { queue num 0 bypass; }; }"
    loads = guarded.ns.run("nft", "-f", "-", stdin=text, check=False).returncode == 0
    with guarded.ns.entered():
        assert native.has_queue(System()) is loads
