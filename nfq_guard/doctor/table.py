# SPDX-License-Identifier: MIT
"""The conntrack table: its fill level and its counters."""

from collections.abc import Iterator
from typing import Final

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.names import counted

# Both sysctls are one for all network namespaces, and read-only in any but the first.
_BY_HOST: Final = ", in the host's own network namespace"


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
    """The table's fill level; a full table drops new flows before any rule applies.

    Args:
        count: Number of entries.
        maximum: The sysctl nf_conntrack_max; 0: no limit.
    """
    if not maximum:
        return ok(
            "table.fill", f"{counted(count, 'connection')}, without a limit (nf_conntrack_max=0)"
        )
    what = f"{count} of {maximum} connections"
    todo = f"raise net.netfilter.nf_conntrack_max (and nf_conntrack_buckets with it){_BY_HOST}"
    share = count / maximum
    if share >= 0.95:
        return problem("table.fill", f"{what}: new flows are being dropped or soon will be", todo)
    if share >= 0.8:
        return warning("table.fill", f"{what}: nearly full", todo)
    return ok("table.fill", what)


def counters(sums: dict[str, int], *, ipvs: bool = False) -> Iterator[Check]:
    """Counts since the namespace was created.

    Args:
        sums: The counts, by column of `parse_counters`.
        ipvs: Whether IPVS has services, to which an INVALID packet gets a second entry (kernel.md
            2).
    """
    if not sums:
        return
    # The column of chains that are too long; `insert_failed` counts these packets as well, and
    # `drop` does not (Linux 5.15).
    long = sums.get("chainlength", 0)
    # A packet that loses the race counts in `insert_failed` and `drop`; a packet that is dropped
    # because the table is full counts in `drop` only.
    failed = max(0, sums.get("insert_failed", 0) - long)
    full = max(0, sums.get("drop", 0) - failed)
    early = sums.get("early_drop", 0)
    if full or early:
        yield warning(
            "table.drops",
            f"{counted(full, 'packet')} dropped and {counted(early, 'connection')} evicted because "
            "the table was full; later packets of those are INVALID or NEW",
            f"raise net.netfilter.nf_conntrack_max{_BY_HOST}, or find out what opens so many "
            "connections",
        )
    else:
        yield ok("table.drops", "no packet dropped or connection evicted for lack of space")
    if failed:
        yield warning(
            "table.insert_failed",
            f"{counted(failed, 'packet')} dropped because another packet inserted the same entry "
            "first: two packets of one new flow at once, or two flows that were given one "
            "translated port (often DNS over UDP)"
            + ("; with IPVS, INVALID packets to its services as well" if ipvs else ""),
            "where the host masquerades, use --random-fully (nftables: fully-random); for DNS, a "
            "cache on the host or TCP",
        )
    if long:
        yield warning(
            "table.chains",
            f"{counted(long, 'packet')} of new flows dropped because the table has too few buckets "
            "for its connections: the list of one bucket was too long",
            f"raise net.netfilter.nf_conntrack_buckets to nf_conntrack_max{_BY_HOST}",
        )
    invalid, errors = sums.get("invalid", 0), sums.get("icmp_error", 0)
    if invalid or errors:
        yield note(
            "table.invalid",
            f"{counted(invalid + errors, 'INVALID packet')} since this namespace was created, "
            f"{errors} of them ICMP (column icmp_error)",
            "run `nfq-guard run --mode dry-run` to learn the reason of each",
        )
    else:
        yield ok("table.invalid", "no INVALID packet so far")
