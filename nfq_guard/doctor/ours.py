# SPDX-License-Identifier: MIT
"""Whether our own rules are installed, once and as configured."""

from collections.abc import Iterator, Sequence

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.firewall import Difference, Kind
from nfq_guard.names import counted

# Differences that break the guard, unlike rules that were installed for another configuration.
_BREAKING = frozenset(
    {
        Kind.MISSING_CHAIN,
        Kind.MISSING_JUMP,
        Kind.MISSING_RULE,
        Kind.DUPLICATE_JUMP,
        Kind.JUMP_NOT_FIRST,
        Kind.JUMP_NOT_LAST,
    }
)


def ours(
    places: Sequence[str], differences: Sequence[Difference], *, complete: bool = True
) -> Check:
    """The state of our rules.

    Args:
        places: The packet filters that hold rules of ours: `legacy`, `nft`, `nftables`.
        differences: Differences from the configuration, in the chosen packet filter.
        complete: Whether all packet filters could be read.
    """
    if not places and not complete:
        return note("rules.ours", "cannot read whether our rules are installed", "run it as root")
    if not places:
        return note(
            "rules.ours",
            "our rules are not installed here",
            "start the guard, which installs them, or run `nfq-guard rules install`",
        )
    if len(places) > 1:
        return problem(
            "rules.ours",
            f"our rules are in {' and '.join(places)}: packets are queued more than once",
            "run `nfq-guard rules install`, which keeps one backend's; `nft delete table inet "
            "nfq_guard` removes the native table",
        )
    if not differences and places[0] == "nftables":
        return ok("rules.ours", "our rules are loaded as a native nftables table")
    if not differences:
        return ok("rules.ours", f"rules OK, in {places[0]}")
    what = f"{counted(len(differences), 'difference')} in our rules, such as {differences[0]}"
    todo = "list them with `nfq-guard rules verify`, repair them with `nfq-guard rules install`"
    if _BREAKING & {difference.kind for difference in differences}:
        return problem("rules.ours", what, todo)
    return warning("rules.ours", what, todo)


def remarks(found: Sequence[Difference]) -> Iterator[Check]:
    """Checks on rules of other programs in the chains of our jumps."""
    for each in found:
        if each.kind is Kind.POLICY_SKIPPED:
            todo = "replace the policy by a rule, which stands before ours"
        else:
            todo = (
                "keep it where a program installs it; a rule of your own can leave INVALID packets "
                "to the guard"
            )
        yield warning("rules.order", str(each), todo)
