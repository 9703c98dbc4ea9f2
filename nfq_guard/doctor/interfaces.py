# SPDX-License-Identifier: MIT
"""Interfaces: their offloads, and how their receive work is spread over the CPUs.

An overloaded receiver is the root cause of many resets. A CPU that cannot keep up delivers packets
late and out of order, so the sender retransmits them, and packets that arrive after the connection
has moved on are outside its window.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.doctor.check import Check, note, ok, warning
from nfq_guard.names import counted

# A CPU with this share of the interrupts counts as doing all receive work, if there were enough
# interrupts for a conclusion.
_LOPSIDED: Final = 0.9
_ENOUGH: Final = 10_000

# Interrupts of transmit-only queues, and those that do not concern packets; `TxRx` serves both
# directions.
_NOT_RECEIVING: Final = re.compile(
    r"(output|config|control|async|mgmnt|[-.]tx)(?!rx)", re.IGNORECASE
)

_SPREAD: Final = (
    "spread the work (more queues with ethtool -L, irqbalance, or rps_cpus): late packets from an "
    "overloaded receiver cause many resets"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A physical interface, as described in /sys.

    Attributes:
        name: Its name.
        rps: Whether receive packet steering is on, for each receive queue.
        rfs: `rps_flow_cnt` of each receive queue: flows that it can steer to their reader's CPU.
        irqs: Its interrupt numbers and device names, as they appear in /proc/interrupts.
    """

    name: str
    rps: Sequence[bool]
    rfs: Sequence[int]
    irqs: frozenset[str]


def parse_features(text: str) -> dict[str, bool]:
    """The output of `ethtool -k`: whether each feature is on."""
    features: dict[str, bool] = {}
    for line in text.splitlines():
        name, colon, value = line.strip().partition(": ")
        if colon and value.split()[:1] in (["on"], ["off"]):
            features[name] = value.startswith("on")
    return features


def offloads(name: str, features: Mapping[str, bool], *, forwarding: bool) -> Check:
    """The interface's merging offloads (LRO, GRO) and segmentation offload (TSO).

    Args:
        name: The interface.
        features: From `parse_features`.
        forwarding: Whether this namespace forwards packets.
    """
    state = {
        "LRO": features.get("large-receive-offload", False),
        "GRO": features.get("generic-receive-offload", False),
        "TSO": features.get("tcp-segmentation-offload", False),
    }
    what = ", ".join(f"{offload} {'on' if value else 'off'}" for offload, value in state.items())
    if state["LRO"] and forwarding:
        return warning(
            "offload.interface",
            f"{name}: {what}; LRO changes packets that this host forwards",
            f"ethtool -K {name} lro off",
        )
    if state["GRO"]:
        what += "; conntrack and the guard judge a merged packet as one"
    return ok("offload.interface", f"{name}: {what}")


def parse_interrupts(text: str) -> dict[str, list[int]]:
    """Parse /proc/interrupts.

    Returns:
        Counts by CPU, keyed by number and device, such as `38 virtio2-input.0`.
    """
    lines = text.splitlines()
    cpus = len(lines[0].split()) if lines else 0
    counts: dict[str, list[int]] = {}
    for line in lines[1:]:
        number, _, rest = line.partition(":")
        columns = rest.split()
        values = columns[:cpus]
        if (
            number.strip().isdecimal()
            and len(values) == cpus
            and all(v.isdecimal() for v in values)
        ):
            counts[f"{number.strip()} {columns[-1]}"] = [int(value) for value in values]
    return counts


def spread(
    interface: Interface, interrupts: Mapping[str, Sequence[int]], *, strained: bool
) -> Iterator[Check]:
    """Whether one CPU does all the receive work of an interface.

    Args:
        interface: The interface.
        interrupts: From `parse_interrupts`.
        strained: Whether a CPU of this host has ever failed to keep up (`overloaded`).
    """
    name = interface.name
    mine = [counts for key, counts in interrupts.items() if _receives(key, interface.irqs)]
    steering = (
        f"{counted(len(interface.rps), 'receive queue')}, "
        f"RPS {'on' if any(interface.rps) else 'off'}, "
        f"RFS {'on' if any(interface.rfs) else 'off'}"
    )
    if not mine:
        yield note("receive.irq", f"{name}: {steering}; cannot read its interrupts")
        return
    by_cpu = [sum(column) for column in zip(*mine, strict=True)]
    total = sum(by_cpu)
    if len(by_cpu) < 2:
        yield ok("receive.irq", f"{name}: {steering}; the host has one CPU")
        return
    busiest = max(range(len(by_cpu)), key=by_cpu.__getitem__)
    share = by_cpu[busiest] / total if total else 0.0
    what = f"{name}: {steering}; CPU {busiest} took {share:.0%} of {total} interrupts"
    if total >= _ENOUGH and share >= _LOPSIDED and not any(interface.rps):
        if strained:
            yield warning("receive.irq", f"{what}, and could not keep up", _SPREAD)
        else:
            yield note("receive.irq", f"{what}; it keeps up", f"if it stops keeping up: {_SPREAD}")
    else:
        yield ok("receive.irq", what)


def _receives(interrupt: str, irqs: frozenset[str]) -> bool:
    """Whether an interrupt, such as `38 virtio2-input.0`, is in `irqs` and serves reception."""
    number, _, device = interrupt.partition(" ")
    ours = number in irqs or re.split(r"[-:@]", device, maxsplit=1)[0] in irqs
    return ours and _NOT_RECEIVING.search(device) is None


def vrfs(names: Sequence[str]) -> Iterator[Check]:
    """VRFs, through which a packet enters PREROUTING a second time (kernel.md 5).

    Args:
        names: Their names.
    """
    if names:
        yield note(
            "tracking.vrf",
            f"a packet that a port of a VRF ({', '.join(names)}) receives passes PREROUTING twice, "
            "with the port as its interface and with the VRF: conntrack, the rules and the guard "
            "count an INVALID one twice unless it is dropped the first time",
            "to count each packet once, leave out those whose interface (`in`) is a VRF",
        )


def parse_softnet(text: str) -> list[tuple[int, int, int]]:
    """Parse /proc/net/softnet_stat: processed, dropped and time_squeeze, one row a CPU."""
    rows = [[int(word, 16) for word in line.split()[:3]] for line in text.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def overloaded(rows: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a backlog was ever full, or time_squeeze exceeds one per thousand packets."""
    return any(row[1] for row in rows) or sum(row[2] for row in rows) * 1000 > sum(
        row[0] for row in rows
    )


def backlog(rows: Sequence[tuple[int, int, int]]) -> Check | None:
    """Whether a CPU has ever failed to keep up with what it received."""
    if not rows:
        return None
    packets, dropped, squeezed = (sum(column) for column in zip(*rows, strict=True))
    what = (
        f"{packets} packets received, {dropped} dropped at a full backlog, processing deferred "
        f"{squeezed} times"
    )
    if not overloaded(rows):
        return ok("receive.backlog", what)
    limit = "netdev_max_backlog" if dropped else "netdev_budget"
    return warning("receive.backlog", what, f"raise net.core.{limit}, or {_SPREAD}")
