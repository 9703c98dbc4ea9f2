# SPDX-License-Identifier: MIT
"""Runs the program nft, and converts its error messages into exceptions."""

import json
from typing import Any, Final

from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall.xtables import Runner

_REFUSED: Final = ("operation not permitted", "permission denied")

# What is read of each kind of object without asking whether it is there: a name, and more.
_KEYS: Final = {
    "chain": ("name",),
    "rule": ("chain", "expr"),
    "set": ("name",),
    "counter": ("name",),
}

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
    return listed(run(runner, ["-j", "-t", "list", "table", "inet", name], "", what), what)


def listed(text: str, what: str) -> Listed:
    """The objects that `nft -j` prints; none for no output.

    Raises:
        UnavailableError: The output is cut, or has another shape.
    """
    if not text:
        return []
    try:
        found: Listed = json.loads(text)["nftables"]
        for one in found:
            for kind, value in one.items():
                _require(kind, value)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UnavailableError(f"{what}: the output of nft -j cannot be read: {said}") from None
    return found


def _require(kind: str, value: dict[str, Any]) -> None:
    """Raise an error unless an object has what is read of its kind."""
    name, *more = [value[key] for key in _KEYS.get(kind, ())] or [""]
    if not isinstance(name, str) or not all(isinstance(each, list) for each in more):
        raise TypeError(f"a {kind} of another shape")
