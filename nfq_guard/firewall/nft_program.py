# SPDX-License-Identifier: MIT
"""Runs the program nft, and converts its error messages into exceptions."""

import json
from typing import Any, Final

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall.xtables import Runner

_REFUSED: Final = ("operation not permitted", "permission denied")

Listed = list[dict[str, Any]]


def run(runner: Runner, words: list[str], text: str, what: str) -> str:
    """Run nft and return its output.

    Args:
        runner: Access to the system.
        words: Its arguments.
        text: Its standard input.
        what: The purpose of the run, for error messages.

    Raises:
        UnavailableError: The program is missing or fails.
        PrivilegeError: The kernel refused.
    """
    if not runner.find("nft"):
        raise UnavailableError(f"{what}: program nft (Debian package nftables) is missing")
    result = runner.run(["nft", *words], text)
    if result.status:
        said = "; ".join(line.strip() for line in result.stderr.splitlines()[:1])
        if any(word in said.lower() for word in _REFUSED):
            raise PrivilegeError(f"{what}: nft was refused: {said}; it needs CAP_NET_ADMIN")
        raise UnavailableError(f"{what}: nft: {said or f'status {result.status}'}")
    return result.stdout


def table(runner: Runner, name: str, what: str) -> Listed | None:
    """The objects of a table of family inet, without elements of sets; None if there is none.

    Raises:
        UnavailableError: The program is missing or fails.
        PrivilegeError: The kernel refused.
    """
    if not runner.has_nft_table(name):
        return None
    return listed(run(runner, ["-j", "-t", "list", "table", "inet", name], "", what))


def listed(text: str) -> Listed:
    """The objects that `nft -j` prints; none for no output."""
    found: Listed = json.loads(text)["nftables"] if text else []
    return found
