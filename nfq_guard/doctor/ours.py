# SPDX-License-Identifier: MIT
"""Whether our own rules are installed, once and as configured."""

from collections.abc import Iterator, Sequence

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.doctor.own_queue import NONE, ToUs
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
    places: Sequence[str],
    differences: Sequence[Difference],
    *,
    complete: bool = True,
    others: ToUs = NONE,
    by_others: bool = False,
    dormant: Sequence[str] = (),
) -> Check:
    """The state of our rules.

    Args:
        places: The packet filters that hold rules of ours: `legacy`, `nft`, `nftables`.
        differences: Differences from the configuration, in the chosen packet filter.
        complete: Whether all packet filters could be read.
        others: Rules of others that lead to our queue.
        by_others: Whether our rules are left to others (`rules = "none"`).
        dormant: The tables with rules of ours of which the kernel runs none.
    """
    if dormant:
        which = " and ".join(dormant)
        return problem(
            "rules.ours",
            f"our rules are in {which}, dormant in nftables: the kernel runs none of them",
            f"find out what made it dormant; `nft add table {dormant[0]}` wakes it, with all of "
            "its rules",
        )
    if not places and not complete:
        return note("rules.ours", "cannot read whether our rules are installed", "run it as root")
    if not places:
        return _none(others, by_others=by_others)
    if len(places) > 1:
        return problem(
            "rules.ours",
            f"our rules are in {' and '.join(places)}: packets are queued more than once",
            "run `nfq-guard rules install`, which keeps one backend's; `nft delete table inet "
            "nfq_guard` removes the native table",
        )
    if others.places and not others.valid:  # `valid_packets` reports those
        return warning(
            "rules.ours",
            f"our rules are in {places[0]}, and our queue gets packets by {_such(others)} too: a "
            "packet may be judged twice",
            'remove that rule; or keep it alone, by the setting `rules` = "none"',
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


def _none(others: ToUs, *, by_others: bool) -> Check:
    """The state of a host without our rules."""
    if others.places and not others.in_prerouting:
        return warning(
            "rules.ours",
            f"our queue gets packets by {_such(others)}, and none in PREROUTING: packets of other "
            "hosts that take another hook are not judged",
            "move the rule to table mangle, chain PREROUTING",
        )
    if others.places and by_others:
        return ok("rules.ours", f"our queue gets packets by {_such(others)}, not by rules of ours")
    if others.places:
        return note(
            "rules.ours",
            f"our rules are not installed here; our queue gets packets by {_such(others)}",
            'if that rule is to do it alone, set `rules` = "none": the guard installs its own at '
            "its start",
        )
    if by_others:
        return note(
            "rules.ours",
            'our rules are not installed here, which the setting `rules` = "none" leaves to '
            "others, and no other rule leads to our queue",
            "see those of `nfq-guard rules show`",
        )
    return note(
        "rules.ours",
        "our rules are not installed here",
        "start the guard, which installs them, or run `nfq-guard rules install`",
    )


def valid_packets(others: ToUs) -> Iterator[Check]:
    """A problem where rules of others hand packets to us that are not INVALID."""
    if others.valid:
        yield problem(
            "queue.valid",
            f"our queue gets packets that are not INVALID, by {_first_of(others.valid)}: the "
            "policy decides about them too, and no other program on that queue gets them",
            "if that rule is for another program, give the guard a queue of its own (`queue` or "
            "`queues` under `[daemon]`); else let it match INVALID packets alone",
        )


def _such(others: ToUs) -> str:
    return _first_of(others.places)


def _first_of(places: Sequence[str]) -> str:
    first, more = places[0], len(places) - 1
    return f"{first} and {more} more" if more else first


def remarks(found: Sequence[Difference]) -> Iterator[Check]:
    """Checks on rules of other programs in the chains of our jumps; `ours` has dormant tables."""
    for each in (one for one in found if one.kind is not Kind.DORMANT):
        if each.kind is Kind.POLICY_SKIPPED:
            todo = "replace the policy by a rule, which stands before ours"
        else:
            todo = (
                "keep it where a program installs it; a rule of your own can leave INVALID packets "
                "to the guard"
            )
        yield warning("rules.order", str(each), todo)
