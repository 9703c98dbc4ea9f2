# SPDX-License-Identifier: MIT
"""Renders docs/faults.md from the outcomes."""

import os
import platform
from collections.abc import Sequence
from typing import Final

from tests.faults.catalogue import CATALOGUE, Entry
from tests.faults.outcome import Outcome

_HEAD: Final = """\
# What faults cost

Written by `make faults`, which injects each fault into a running daemon, or into the service under
its own systemd, while numbered INVALID packets arrive at a constant rate. The policy drops every
fifth of them: if one of these arrives, it has passed unjudged.

"Exact" means that all counters agree to the packet: the host's rule before conntrack counted what
was sent, its rule after the guard counted what was received, and, if the daemon survived, each
packet was judged, or shed by the kernel, or passed unjudged and was counted by the daemon.

`make faults-short` injects each fault a few times and does not change this page.

"""
_REASONS: Final = """
## Targets that were missed

"""
_SOAK: Final = """
## The soak test

The daemon during F21; `.venv/bin/python -m tests.faults --fault soak --soak SECONDS` draws the
figure anew. Its delay is that of single rounds, which differ by a quarter and follow the speed of
the machine. The table compares that of this daemon at its end with one just started, in turn.

![memory, descriptors and delay](soak.svg)
"""
_HELD: Final = """
## The tests of each fault

F are the faults that the guard was designed for, A those that were found by testing later, T what
must not happen to healthy traffic. A fault without a named test has none.

| fault | what happens | tests |
| --- | --- | --- |
"""


def line(outcome: Outcome) -> str:
    """One outcome as a line for a terminal."""
    exact = {None: "", True: ", exact", False: ", NOT EXACT"}[outcome.exact]
    said = "met" if outcome.met else "MISSED"
    return f"{outcome.fault:4}{said:7}{outcome.injected}: {outcome.measured}{exact}"


def render(outcomes: Sequence[Outcome], seed: int, *, short: bool = False) -> str:
    """The page, for a run with `seed`, in the short form or not."""
    rows = ["| fault | injected | target | measured | met | exact |", "| --- " * 6 + "|"]
    for one in outcomes:
        exact = {None: "-", True: "yes", False: "no"}[one.exact]
        cells = (
            one.fault,
            one.injected,
            one.target,
            one.measured,
            "yes" if one.met else "no",
            exact,
        )
        rows.append(f"| {' | '.join(cells)} |")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    machine = (
        f"\nLinux {platform.release()}, {os.cpu_count()} CPUs, load average at the end {load}; "
        f"seed {seed}.\n"
    )
    if short:
        machine += "This was the short form: a percentile is the largest of a few values.\n"
    missed = {one.fault for one in outcomes if not one.met}
    reasons = [
        f"- {entry.code}: {entry.reason}\n"
        for entry in CATALOGUE
        if entry.reason and entry.code in missed
    ]
    parts = [_HEAD, "\n".join(rows), "\n", machine]
    if reasons:
        parts += [_REASONS, *reasons]
    if any(one.fault == "F21" for one in outcomes):
        parts.append(_SOAK)
    return "".join([*parts, _HELD, *map(_held, CATALOGUE)])


def _held(entry: Entry) -> str:
    by = [f"`make faults`, {', '.join(entry.campaigns)}"] if entry.campaigns else []
    by += [f"`{test}`" for test in entry.tests]
    return f"| {entry.code} | {entry.what} | {'<br>'.join(by) or 'nothing: ' + entry.reason} |\n"
