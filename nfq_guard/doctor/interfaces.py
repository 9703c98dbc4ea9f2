# SPDX-License-Identifier: MIT
"""Interfaces: what they merge, and how their receive work is spread over the CPUs.

Late packets from an overloaded receiver are the root cause behind many a reset: a CPU that cannot
keep up delivers packets late and out of order, the sender repeats them, and what arrives after
the connection has moved on is outside its window.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.doctor.check import Check, note, ok, warning

# A CPU that does nine tenths of the work does all of it; below so many interrupts nothing is sure.
_LOPSIDED: Final = 0.9
_ENOUGH: Final = 10_000

# Queues that only send, and those for anything but packets; `TxRx` is for both ways.
_NOT_RECEIVING: Final = re.compile(
    r"(output|config|control|async|mgmnt|[-.]tx)(?!rx)", re.IGNORECASE
)

_SPREAD: Final = (
    "spread it (more queues with ethtool -L, irqbalance, or rps_cpus): late packets from an "
    "overloaded receiver are behind many resets"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What /sys tells about a physical interface.

    Attributes:
        name: Its name.
        rps: Whether receive packet steering is on, for each receive queue.
        rfs: Flows that each receive queue steers to the CPU of their reader.
        irqs: Numbers of its interrupts, and words that name them in /proc/interrupts.
    """

    name: str
    rps: Sequence[bool]
    rfs: Sequence[int]
    irqs: frozenset[str]


def parse_features(text: str) -> dict[str, bool]:
    """What `ethtool -k` prints: each feature, and whether it is on."""
    features: dict[str, bool] = {}
    for line in text.splitlines():
        name, colon, value = line.strip().partition(": ")
        if colon and value.split()[:1] in (["on"], ["off"]):
            features[name] = value.startswith("on")
    return features


def offloads(name: str, features: Mapping[str, bool], *, forwarding: bool) -> Check:
    """What an interface merges before conntrack sees it, and what it cuts after.

    Args:
        name: Of the interface.
        features: From `parse_features`.
        forwarding: Whether this namespace forwards packets.
    """
    state = {
        "LRO": features.get("large-receive-offload", False),
        "GRO": features.get("generic-receive-offload", False),
        "TSO": features.get("tcp-segmentation-offload", False),
    }
    shown = ", ".join(f"{offload} {'on' if value else 'off'}" for offload, value in state.items())
    if state["LRO"] and forwarding:
        return warning(
            "offload.interface",
            f"{name}: {shown}; LRO changes packets that this host forwards",
            f"ethtool -K {name} lro off",
        )
    if state["GRO"]:
        shown += "; conntrack and the guard judge merged packets as one"
    return ok("offload.interface", f"{name}: {shown}")


def parse_interrupts(text: str) -> dict[str, list[int]]:
    """/proc/interrupts: counts by CPU; keyed by number and by the words that name the device."""
    lines = text.splitlines()
    cpus = len(lines[0].split()) if lines else 0
    counts: dict[str, list[int]] = {}
    for line in lines[1:]:
        number, _, rest = line.partition(":")
        columns = rest.split()
        values = columns[:cpus]
        if number.strip().isdigit() and len(values) == cpus and all(v.isdigit() for v in values):
            counts[f"{number.strip()} {columns[-1]}"] = [int(value) for value in values]
    return counts


def spread(
    interface: Interface, interrupts: Mapping[str, Sequence[int]], *, strained: bool
) -> Iterator[Check]:
    """Whether one CPU does the receive work of an interface alone.

    Args:
        interface: Which.
        interrupts: From `parse_interrupts`.
        strained: Whether a CPU of this host ever could not keep up (`overloaded`).
    """
    name = interface.name
    mine = [counts for key, counts in interrupts.items() if _receives(key, interface.irqs)]
    steering = (
        f"{len(interface.rps)} receive queues, RPS {'on' if any(interface.rps) else 'off'}, "
        f"RFS {'on' if any(interface.rfs) else 'off'}"
    )
    if not mine:
        yield note("receive.irq", f"{name}: {steering}; its interrupts are not to be seen")
        return
    by_cpu = [sum(column) for column in zip(*mine, strict=True)]
    total = sum(by_cpu)
    if len(by_cpu) < 2:
        yield ok("receive.irq", f"{name}: {steering}; there is one CPU")
        return
    busiest = max(range(len(by_cpu)), key=by_cpu.__getitem__)
    share = by_cpu[busiest] / total if total else 0.0
    what = f"{name}: {steering}; CPU {busiest} took {share:.0%} of {total} interrupts"
    if total >= _ENOUGH and share >= _LOPSIDED and not any(interface.rps):
        if strained:
            yield warning("receive.irq", f"{what}, and could not keep up", _SPREAD)
        else:
            yield note("receive.irq", f"{what}; it keeps up", f"when it does not: {_SPREAD}")
    else:
        yield ok("receive.irq", what)


def _receives(interrupt: str, words: frozenset[str]) -> bool:
    """Whether an interrupt, such as `38 virtio2-input.0`, is for packets that `words` received."""
    number, _, device = interrupt.partition(" ")
    ours = number in words or re.split(r"[-:@]", device, maxsplit=1)[0] in words
    return ours and _NOT_RECEIVING.search(device) is None


def parse_softnet(text: str) -> list[tuple[int, int, int]]:
    """/proc/net/softnet_stat: packets, dropped, out of time; one line a CPU."""
    rows = [[int(word, 16) for word in line.split()[:3]] for line in text.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def overloaded(rows: Sequence[tuple[int, int, int]]) -> bool:
    """Whether packets were dropped at a full backlog, or work was put off for one in a thousand."""
    return any(row[1] for row in rows) or sum(row[2] for row in rows) * 1000 > sum(
        row[0] for row in rows
    )


def backlog(rows: Sequence[tuple[int, int, int]]) -> Check | None:
    """Whether a CPU ever could not keep up with what it received."""
    if not rows:
        return None
    packets, dropped, squeezed = (sum(column) for column in zip(*rows, strict=True))
    what = f"{dropped} dropped at a full backlog and {squeezed} times put off, of {packets} packets"
    if not overloaded(rows):
        return ok("receive.backlog", what)
    limit = "netdev_max_backlog" if dropped else "netdev_budget"
    return warning("receive.backlog", what, f"raise net.core.{limit}, or {_SPREAD}")
