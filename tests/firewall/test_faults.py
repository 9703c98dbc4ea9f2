# SPDX-License-Identifier: MIT
"""Missing programs, privileges and kernel features."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from nfq_guard.capabilities import NET_ADMIN, NET_RAW
from nfq_guard.errors import BusyError, PrivilegeError, UnavailableError
from nfq_guard.firewall import Backend, Family, Firewall, RulesSpec
from nfq_guard.firewall.backends import choose
from nfq_guard.firewall.xtables import Result, Xtables
from tests.firewall.conftest import Host

ALL_CAPS = (1 << 41) - 1
PROGRAMS = frozenset(
    f"{base}{middle}{suffix}"
    for base in ("iptables", "ip6tables")
    for middle in ("", "-legacy", "-nft")
    for suffix in ("", "-save", "-restore")
)
EMPTY = Result(0, "", "")


class FakeSystem:
    """A machine whose programs answer by the first key that their command line contains."""

    def __init__(
        self,
        answers: dict[str, Result] | None = None,
        programs: frozenset[str] = PROGRAMS,
        caps: int = ALL_CAPS,
        *,
        ipv6: bool = True,
    ) -> None:
        self.answers = answers or {}
        self.programs = programs
        self.caps = caps
        self.ipv6 = ipv6
        self.asked: list[tuple[str, str]] = []
        self.live: dict[str, str] = {}

    def find(self, program: str) -> bool:
        return program in self.programs

    def run(self, argv: list[str], stdin: str) -> Result:
        self.asked.append((argv[0], stdin))
        if argv[1:] == ["-V"]:
            return self.answers.get("-V", Result(0, "iptables v1.8.9 (nf_tables)\n", ""))
        if argv[0] == "systemctl":
            return self.answers[argv[1]]
        base, _, deed = argv[0].rpartition("-")
        if deed == "save":
            return Result(0, self.live.get(base, ""), "")
        text = f"{argv[0]} {stdin}"
        answer = next((answer for word, answer in self.answers.items() if word in text), EMPTY)
        if answer is EMPTY:
            self.live[base] = re.sub(r"^-I (\w+) 1 ", r"-A \1 ", stdin, flags=re.MULTILINE)
        return answer

    def capabilities(self) -> int:
        return self.caps

    def has_ipv6(self) -> bool:
        return self.ipv6

    def has_legacy_mangle(self) -> bool:
        return self.legacy_mangle

    legacy_mangle = False

    def has_nft_table(self, name: str) -> bool:  # noqa: ARG002 - as of a Runner
        return False

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def loaded(self) -> list[str]:
        return [program for program, _ in self.asked if program.endswith("-restore")]


def test_without_iptables_the_package_is_named() -> None:
    machine = FakeSystem(programs=frozenset())
    for deed in ("install", "verify", "remove", "show"):
        with pytest.raises(UnavailableError, match="Debian package iptables"):
            getattr(Firewall(RulesSpec(), runner=machine), deed)()


def test_without_capabilities_they_are_named() -> None:
    machine = FakeSystem(caps=0)
    for deed in ("install", "verify", "remove"):
        with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
            getattr(Firewall(RulesSpec(), runner=machine), deed)()
    legacy = Firewall(RulesSpec(), Backend.LEGACY, runner=FakeSystem(caps=1 << 12))
    with pytest.raises(PrivilegeError, match="CAP_NET_RAW"):
        legacy.install()


def test_show_needs_no_privilege() -> None:
    shown = Firewall(RulesSpec(), runner=FakeSystem(caps=0)).show()
    assert "only root can see" in shown
    assert "*mangle" in shown


def test_a_refusal_by_the_kernel_names_the_capability() -> None:
    said = "Could not fetch rule set generation id: Permission denied (you must be root)"
    machine = FakeSystem({"-nft-restore": Result(4, "", said)})
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        Firewall(RulesSpec(), Backend.NFT, runner=machine).install()


def test_a_kernel_without_ipv6_gets_ipv4_alone() -> None:
    machine = FakeSystem(ipv6=False)
    changes = Firewall(RulesSpec(), Backend.NFT, runner=machine).install()
    assert changes.notes == ("IPv6 left out: the kernel has no IPv6 here",)
    assert set(machine.loaded()) == {"iptables-nft-restore"}


def test_a_kernel_without_ip6tables_gets_ipv4_alone() -> None:
    said = "ip6tables-restore: can't initialize ip6tables table `mangle': Table does not exist"
    machine = FakeSystem({"ip6tables-legacy": Result(3, "", said)})
    changes = Firewall(RulesSpec(), Backend.LEGACY, runner=machine).install()
    assert [note for note in changes.notes if "no ip6tables" in note]
    assert len(changes.done) == 1


def test_only_the_missing_family_asked_for_is_an_error() -> None:
    machine = FakeSystem(ipv6=False)
    with pytest.raises(UnavailableError, match="no IPv6"):
        Firewall(RulesSpec(), Backend.NFT, (Family.IPV6,), machine).install()


def test_a_missing_extension_is_named_by_its_kernel_option() -> None:
    said = "iptables-restore v1.8.9 (legacy): Couldn't load match `hashlimit'"
    machine = FakeSystem({"hashlimit": Result(2, "", said)})
    firewall = Firewall(RulesSpec(max_rate_pps=100), Backend.LEGACY, runner=machine)
    with pytest.raises(UnavailableError, match="CONFIG_NETFILTER_XT_MATCH_HASHLIMIT"):
        firewall.install()
    assert Firewall(RulesSpec(), Backend.LEGACY, runner=machine).install().done


def test_plain_programs_serve_the_backend_that_they_speak() -> None:
    """Programs of an old distribution have one backend, and do not name it."""
    programs = frozenset({"iptables", "iptables-save", "iptables-restore"})
    machine = FakeSystem({"-V": Result(0, "iptables v1.6.1\n", "")}, programs, ipv6=False)
    assert Xtables(machine, Backend.LEGACY, Family.IPV4).program("-save") == "iptables-save"
    assert Xtables(machine, Backend.NFT, Family.IPV4).program("-save") is None
    choice = Firewall(RulesSpec(), runner=machine).choice()
    assert (choice.backend, choice.why) == (
        Backend.LEGACY,
        "only the legacy programs are installed",
    )


def test_a_lost_race_is_tried_again() -> None:
    """Another process deletes a rule after our rules were read and before they are written."""

    class Racing(FakeSystem):
        def run(self, argv: list[str], stdin: str) -> Result:
            if "COMMIT" in stdin and not self.loaded():
                self.asked.append((argv[0], stdin))
                return Result(1, "", "line 3 failed")
            return super().run(argv, stdin)

    changes = Firewall(RulesSpec(), Backend.NFT, (Family.IPV4,), Racing()).install()
    assert len(changes.done) == 1


class Installed(FakeSystem):
    """Has our rules for queue 3 in iptables-nft, loaded by another daemon or an earlier one."""

    def __init__(self) -> None:
        super().__init__()
        other = Firewall(RulesSpec(first_queue=3, last_queue=3), Backend.NFT, runner=self)
        other.install()
        self.asked.clear()


def test_the_rules_of_another_daemon_are_left_alone() -> None:
    """It would restore them, again and again; the end of either would remove those of the other."""
    machine = Installed()
    owners = {3: "nfq-guard (pid 711)", 9: "suricata (pid 712)"}
    ours = Firewall(RulesSpec(), Backend.NFT, runner=machine, served_by_others=lambda _: owners)
    for deed in (ours.install, ours.remove):
        with pytest.raises(BusyError, match=r"queue 3, which nfq-guard \(pid 711\) serves"):
            deed()
    assert machine.loaded() == []


def test_the_rules_of_a_daemon_that_has_ended_are_replaced() -> None:
    machine = Installed()
    owners = {9: "suricata (pid 712)"}
    ours = Firewall(RulesSpec(), Backend.NFT, runner=machine, served_by_others=lambda _: owners)
    assert ours.install().done
    assert ours.verify() == []


@pytest.mark.kernel
@pytest.mark.parametrize("installed", [False, True], ids=["fresh", "over-older-rules"])
def test_ipv4_gets_back_what_it_had_when_ipv6_fails(
    guarded: Host,
    backend: Backend,
    installed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with guarded.ns.entered():
        if installed:
            guarded.firewall(RulesSpec(first_queue=3, last_queue=3), backend).install()
        else:
            guarded.ipt(backend, Family.IPV4, "-t", "mangle", "-A", "OUTPUT", "-j", "ACCEPT")
        before = guarded.save(backend, Family.IPV4)
        broken = tmp_path / f"ip6tables-{backend}-restore"
        broken.write_text("#!/bin/sh\necho 'the disk is on fire' >&2\nexit 1\n", encoding="ascii")
        broken.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path), prepend=":")
            with pytest.raises(UnavailableError, match=r"on fire.*; rolled back IPv4$"):
                guarded.firewall(RulesSpec(), backend).install()
    assert guarded.save(backend, Family.IPV4) == before


def test_a_rule_that_another_process_keeps_changing_is_noted() -> None:
    """Another process appends a rule each time: it ends in a note, not in a loop."""

    class Stubborn(FakeSystem):
        def run(self, argv: list[str], stdin: str) -> Result:
            answer = super().run(argv, stdin)
            if answer.stdout:
                return Result(0, answer.stdout.replace("COMMIT", "-A OUTPUT -j X\nCOMMIT"), "")
            return answer

    machine = Stubborn()
    changes = Firewall(RulesSpec(), Backend.NFT, (Family.IPV4,), machine).install()
    assert len(changes.done) == 1
    assert "others change the rules as well: jump-not-last" in changes.notes[0]
    assert len(machine.loaded()) == 3


def test_a_user_who_may_not_see_legacy_tables_installs_into_nft() -> None:
    """With CAP_NET_ADMIN alone, as a hardened service has it."""

    class Hardened(FakeSystem):
        def run(self, argv: list[str], stdin: str) -> Result:
            if argv[0].endswith("legacy-save"):
                said = "Failed to list table names in /proc/net/ip_tables_names: Permission denied"
                return Result(1, "", said)
            return super().run(argv, stdin)

    firewall = Firewall(RulesSpec(), runner=Hardened(caps=1 << 12))
    changes = firewall.install()
    assert firewall.choice().backend is Backend.NFT
    assert len(changes.done) == 2
    assert all("legacy: not checked" in note for note in changes.notes)
    assert firewall.verify() == []


@pytest.mark.parametrize(
    ("caps", "mangle", "before", "chosen"),
    [
        (1 << NET_ADMIN, True, None, Backend.LEGACY),
        (1 << NET_ADMIN, True, Backend.NFT, Backend.NFT),
        (1 << NET_ADMIN, False, None, Backend.NFT),
        (1 << NET_ADMIN | 1 << NET_RAW, True, None, Backend.NFT),
    ],
)
def test_rules_may_be_in_tables_that_this_process_cannot_read(
    caps: int, mangle: bool, before: Backend | None, chosen: Backend
) -> None:
    system = FakeSystem()
    system.caps = caps
    system.legacy_mangle = mangle
    assert choose(system, (Family.IPV4,), before).backend is chosen
