# SPDX-License-Identifier: MIT
"""The table of connections: how full it is, and what its counters tell."""

from collections.abc import Iterator

from nfq_guard.doctor.check import Check, note, ok, problem, warning


def parse_counters(text: str) -> dict[str, int]:
    """The columns of /proc/net/stat/nf_conntrack, each summed over the CPUs.

    `entries` is the same number on every line and is left out.
    """
    lines = text.splitlines()
    if not lines:
        return {}
    names = lines[0].split()
    sums = dict.fromkeys(names, 0)
    for line in lines[1:]:
        for name, value in zip(names, line.split(), strict=False):
            sums[name] += int(value, 16)
    sums.pop("entries", None)
    return sums


def fill(count: int, maximum: int) -> Check:
    """How full the table is; a full one drops new flows before any rule sees them."""
    what = f"{count} of {maximum} connections"
    todo = "raise net.netfilter.nf_conntrack_max (and nf_conntrack_buckets with it)"
    share = count / maximum if maximum else 0.0
    if share >= 0.95:
        return problem("table.fill", f"{what}: new flows are being dropped or soon will be", todo)
    if share >= 0.8:
        return warning("table.fill", f"{what}: nearly full", todo)
    return ok("table.fill", what)


def counters(sums: dict[str, int]) -> Iterator[Check]:
    """What was counted since this namespace began."""
    if not sums:
        return
    if sums.get("drop", 0) or sums.get("early_drop", 0):
        yield warning(
            "table.drops",
            f"{sums.get('drop', 0)} packets dropped and {sums.get('early_drop', 0)} connections "
            "evicted because the table was full; later packets of those are INVALID or new",
            "raise net.netfilter.nf_conntrack_max, or find out who opens so many",
        )
    else:
        yield ok("table.drops", "nothing was dropped or evicted for want of room")
    if sums.get("insert_failed", 0):
        yield note(
            "table.insert_failed",
            f"{sums['insert_failed']} connections lost a race for their entry (often DNS over UDP)",
        )
    invalid = sums.get("invalid", 0)
    if invalid:
        yield note(
            "table.invalid",
            f"{invalid} INVALID packets since this namespace began",
            "nfq-guard run in dry-run mode says why each was",
        )
    else:
        yield ok("table.invalid", "no INVALID packet yet")
