# SPDX-License-Identifier: MIT
"""The plain files in `rules/`."""

import shlex
from pathlib import Path

import pytest

from nfq_guard.firewall import BOTH_FAMILIES, Backend, Family, RulesSpec, native
from nfq_guard.firewall.render import render
from tests.firewall.conftest import Host

RULES = Path(__file__).parents[2] / "rules"
NAMES = {Family.IPV4: "iptables.rules", Family.IPV6: "ip6tables.rules"}


def _commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] not in {"#", ""}]


def test_the_files_hold_what_the_defaults_render(family: Family) -> None:
    text = (RULES / NAMES[family]).read_text(encoding="ascii")
    assert _commands(text) == _commands(render(RulesSpec(), Backend.NFT))


@pytest.mark.kernel
def test_the_files_load_and_verify_and_unload_as_they_say(guarded: Host, family: Family) -> None:
    backend = Backend.NFT
    text = (RULES / NAMES[family]).read_text(encoding="ascii")
    guarded.restore(backend, family, text)
    with guarded.ns.entered():
        firewall = guarded.firewall(backend=backend)
        assert {one.family for one in firewall.verify()} == set(Family) - {family}
    program = "iptables" if family is Family.IPV4 else "ip6tables"
    unload = [line for line in text.splitlines() if f" {program} -t " in line]
    assert len(unload) == 6
    for line in unload:
        guarded.ipt(backend, family, *shlex.split(line.partition(f"{program} ")[2]))
    assert "NFQ_GUARD" not in guarded.save(backend, family)


def test_the_nft_file_holds_what_the_defaults_render() -> None:
    text = (RULES / "nftables.nft").read_text(encoding="ascii")
    assert _commands(text) == _commands(native.render(RulesSpec(), BOTH_FAMILIES))


@pytest.mark.kernel
def test_the_nft_file_loads_twice_but_for_a_queue_that_the_kernel_lacks(guarded: Host) -> None:
    """Without CONFIG_NFT_QUEUE the rest is still tested, and the error is that of the file."""
    text = (RULES / "nftables.nft").read_text(encoding="ascii")
    done = guarded.ns.run("nft", "-c", "-f", "-", stdin=text, check=False)
    if done.returncode:
        complaint = "Could not process rule: No such file or directory"
        assert complaint in text
        errors = [line for line in done.stderr.splitlines() if "Error:" in line]
        assert len(errors) == 1
        assert errors[0].endswith(complaint)
        assert "queue num 0 bypass" in done.stderr
        text = text.replace("queue num 0 bypass", "counter")
    for _ in range(2):
        guarded.ns.run("nft", "-f", "-", stdin=text)
    listed = guarded.ns.run("nft", "list", "table", "inet", "nfq_guard").stdout
    assert listed.count("ct state invalid jump judge") == 2
