# SPDX-License-Identifier: MIT
"""The native table, in a kernel with nftables' statement `queue`; run by name in the machine.

The comparisons of `tests/support/no_harm.py` on a host with native rules, and the fate of unjudged
packets in each fail mode.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_guard.firewall import (
    BOTH_FAMILIES,
    Backend,
    Changes,
    FailMode,
    Firewall,
    Kind,
    Native,
    RulesSpec,
)
from nfq_guard.lab.netns import Namespace
from tests.support.crossroads import Crossroads
from tests.support.no_harm import NoHarm, configure, without

__all__ = ["configure", "without"]

NFT_FILE = Path(__file__).parents[2] / "rules" / "nftables.nft"
SPECS = (
    RulesSpec(),
    RulesSpec(first_queue=4, last_queue=7, cpu_fanout=True, max_rate_pps=30_000),
    RulesSpec(fail_mode=FailMode.CLOSED, max_rate_pps=7),
    RulesSpec(fail_mode=FailMode.KERNEL_DROP, max_rate_pps=1_000_000, unjudged_mark=0x10),
    RulesSpec(offload_entries=64),
)


@pytest.fixture(scope="module")
def crossroads() -> Iterator[Crossroads]:
    with Namespace("peer") as peer, Namespace("host") as host, Namespace("beyond") as beyond:
        made = Crossroads((peer, host, beyond))
        made.load_native()
        with host.entered():
            assert Firewall(RulesSpec()).choice().backend is Native.NFTABLES
        yield made


class TestNative(NoHarm):
    """With the native table, which the daemon itself chooses."""


def _install(spec: RulesSpec) -> Changes:
    return Firewall(spec, Native.NFTABLES).install()


def test_what_was_installed_is_as_it_should_be() -> None:
    with Namespace("host") as host, host.entered():
        for spec in (*SPECS, *reversed(SPECS)):
            _install(spec)
            firewall = Firewall(spec)
            assert firewall.choice().backend is Native.NFTABLES
            assert firewall.verify() == []
            assert firewall.install().done == ()
            for family in BOTH_FAMILIES:
                assert Firewall(spec, Native.NFTABLES, (family,)).verify()
        assert Firewall(RulesSpec()).remove().done
        assert host.run("nft", "list", "tables").stdout == ""


def test_the_other_place_is_cleaned() -> None:
    with Namespace("host") as host, host.entered():
        for backend in (Backend.NFT, Native.NFTABLES, Backend.LEGACY, Native.NFTABLES):
            Firewall(RulesSpec(), backend).install()
            assert Firewall(RulesSpec(), backend).verify() == []
            for other in {*Backend, *Native} - {backend}:
                kinds = {one.kind for one in Firewall(RulesSpec(), other).verify()}
                assert Kind.LEFTOVER in kinds


def test_the_file_is_what_the_defaults_render() -> None:
    with Namespace("host") as host, host.entered():
        for _ in range(2):
            host.run("nft", "-f", "-", stdin=NFT_FILE.read_text(encoding="ascii"))
            assert Firewall(RulesSpec()).verify() == []


@pytest.mark.parametrize("mode", list(FailMode))
def test_unjudged_packets(crossroads: Crossroads, mode: FailMode) -> None:
    """Without a daemon: kernel-drop counts them."""
    with crossroads.host.entered():
        firewall = Firewall(RulesSpec(fail_mode=mode))
        firewall.install()
        try:
            seen = crossroads.observe()
            counted = firewall.rule_counters().unjudged
        finally:
            firewall.remove()
    # Copies are made before our table, so they leave in every mode.
    originals = [one for one in seen if one.place != "up3"]
    assert bool(originals) is (mode is FailMode.OPEN)
    assert (counted > 0) is (mode is FailMode.KERNEL_DROP)
