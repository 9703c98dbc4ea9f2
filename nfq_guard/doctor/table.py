# SPDX-License-Identifier: MIT
"""The conntrack table: its fill level and its counters."""

from collections.abc import Iterator

from nfq_guard.doctor.check import Check, note, ok, problem, warning


def parse_counters(text: str) -> dict[str, int]:
    """The columns of /proc/net/stat/nf_conntrack, summed over the CPUs.

    `entries`, which every line repeats, is left out.
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
    """The table's fill level; a full table drops new flows before any rule sees them."""
    what = f"{count} of {maximum} connections"
    todo = "raise net.netfilter.nf_conntrack_max (and nf_conntrack_buckets with it)"
    share = count / maximum if maximum else 0.0
    if share >= 0.95:
        return problem("table.fill", f"{what}: new flows are being dropped or soon will be", todo)
    if share >= 0.8:
        return warning("table.fill", f"{what}: nearly full", todo)
    return ok("table.fill", what)


def counters(sums: dict[str, int]) -> Iterator[Check]:
    """Counts since the namespace was created, by column of `parse_counters`."""
    if not sums:
        return
    if sums.get("drop", 0) or sums.get("early_drop", 0):
        yield warning(
            "table.drops",
            f"{sums.get('drop', 0)} packets dropped and {sums.get('early_drop', 0)} connections "
            "evicted because the table was full; later packets of those are INVALID or NEW",
            "raise net.netfilter.nf_conntrack_max, or find out what opens so many connections",
        )
    else:
        yield ok("table.drops", "no packet dropped or connection evicted for lack of space")
    if sums.get("insert_failed", 0):
        yield note(
            "table.insert_failed",
            f"{sums['insert_failed']} packets lost a race to insert their entry (often DNS over "
            "UDP)",
        )
    invalid = sums.get("invalid", 0)
    if invalid:
        yield note(
            "table.invalid",
            f"{invalid} INVALID packets since this namespace was created",
            "run `nfq-guard run --mode dry-run` to learn the reason of each",
        )
    else:
        yield ok("table.invalid", "no INVALID packet so far")
