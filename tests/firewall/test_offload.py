# SPDX-License-Identifier: MIT
"""The offload table: its text, and machines that cannot have it."""

from contextlib import AbstractContextManager, nullcontext

import pytest

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall import Firewall, RulesSpec
from nfq_guard.firewall.offload import OffloadTable, render
from nfq_guard.firewall.xtables import Result


class FakeNft:
    """A machine with or without nft, which gives the same answer to every command."""

    def __init__(self, answer: Result | None, *, table: bool = False) -> None:
        self.answer = answer
        self.table = table

    def find(self, program: str) -> bool:
        return self.answer is not None and program == "nft"

    def run(self, argv: list[str], stdin: str) -> Result:  # noqa: ARG002 - as of a Runner
        assert self.answer is not None
        return self.answer

    def capabilities(self) -> int:
        return 0

    def has_ipv6(self) -> bool:
        return True

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def has_legacy_mangle(self) -> bool:
        return self.legacy_mangle

    legacy_mangle = False

    def has_nft_table(self, name: str) -> bool:  # noqa: ARG002 - as of a Runner
        return self.table


REFUSED = Result(1, "", "Error: Could not process rule: Operation not permitted\n")
NO_TABLES = Result(1, "", "netlink: Error: cache initialization failed: Protocol not supported\n")


def test_without_nft_its_package_is_named() -> None:
    with pytest.raises(UnavailableError, match="Debian package nftables"):
        OffloadTable(FakeNft(None), 8).install()
    assert OffloadTable(FakeNft(None), None).verify() == []
    assert OffloadTable(FakeNft(None), None).remove() == []


def test_a_table_that_cannot_be_removed_without_nft() -> None:
    with pytest.raises(UnavailableError, match="Debian package nftables"):
        OffloadTable(FakeNft(None, table=True), None).remove()


def test_a_refusal_names_the_capability() -> None:
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        OffloadTable(FakeNft(REFUSED), 8).install()


def test_a_kernel_without_nftables_matters_only_with_offload() -> None:
    with pytest.raises(UnavailableError, match="Protocol not supported"):
        OffloadTable(FakeNft(NO_TABLES), 8).install()
    assert OffloadTable(FakeNft(NO_TABLES), None).install() == []
    assert OffloadTable(FakeNft(NO_TABLES), None).verify() == []


def test_shown_only_when_it_is_wanted() -> None:
    assert "nft -f" not in Firewall(RulesSpec()).show()
    assert render(99) in Firewall(RulesSpec(offload_entries=99)).show()


def test_the_size_is_that_of_each_set() -> None:
    assert render(99).count("size 99\n") == 4
