# SPDX-License-Identifier: MIT
"""Where our own rules are."""

from collections.abc import Sequence

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.firewall import Difference, Kind

# What others do to our rules, as against rules for another configuration than the one at hand.
_HARM = frozenset(
    {
        Kind.MISSING_CHAIN,
        Kind.MISSING_JUMP,
        Kind.MISSING_RULE,
        Kind.DUPLICATE_JUMP,
        Kind.JUMP_NOT_FIRST,
    }
)


def ours(places: Sequence[str], differences: Sequence[Difference], *, seen: bool = True) -> Check:
    """Our rules as a whole.

    Args:
        places: The packet filters that hold any of ours: `legacy`, `nft`, `nftables`.
        differences: From what the configuration says, in the one that is chosen.
        seen: Whether all packet filters could be read.
    """
    if not places and not seen:
        return note("rules.ours", "whether our rules are there cannot be seen", "run it as root")
    if not places:
        return note(
            "rules.ours",
            "our rules are not installed here",
            "start the guard, which installs them, or: nfq-guard rules install",
        )
    if len(places) > 1:
        return problem(
            "rules.ours",
            f"our rules are in {' and '.join(places)}: packets are queued more than once",
            "nfq-guard rules install, which leaves one (nft delete table inet nfq_guard for a "
            "native one)",
        )
    if places[0] == "nftables":
        return ok("rules.ours", "our rules are loaded as a native nftables table")
    if not differences:
        return ok("rules.ours", f"our rules are as they should be, in {places[0]}")
    what = f"{len(differences)} differences in our rules, such as {differences[0]}"
    todo = "nfq-guard rules verify names them, nfq-guard rules install puts them right"
    if _HARM & {one.kind for one in differences}:
        return problem("rules.ours", what, todo)
    return warning("rules.ours", what, todo)
