# SPDX-License-Identifier: MIT
"""docs/kernels.md, from what the kernels did."""

from collections.abc import Sequence
from typing import Final

from nfq_guard.lab.outcome import Mitigation
from nfq_guard.lab.scenarios import SCENARIOS
from tests.kernels.outcome import Outcome

_TRIALS: Final = len(SCENARIOS) * len(Mitigation)

_HEAD: Final = """\
# The kernels that people run

Written by `tests/kernels`, which boots Debian's own kernels in QEMU (emulated, one CPU) and runs
on each of them, as root:

- the differential fuzz: random TCP segments through the kernel's conntrack and through ours, by
  the rules of the generation named. Compared are the ctstate, the reason that the kernel logs, the
  state, status and timeout of the entry and, where BPF reads it, every field of the window;
- the tests of the window that BPF reads (`tests/flows/test_bpf.py`), where it can be read;
- the native nftables table against no guard (`tests/kernels/native_rules.py`);
- trials of the lab: a scenario with a mitigation each.

`make kernels` runs 1,000,000 packets a kernel, or `PACKETS`, and all trials, which takes hours;
`make kernels-short` runs a few of each and leaves this page alone. The table has the counts of the
run that wrote it.

"""
_TAIL: Final = """
## Not run on these kernels

- The service as a systemd unit, and with the unit's capabilities instead of root.
- netem, flowtables.
- The tests of the queue, of the rules of iptables and of the daemon, other than by way of the lab.
- 5.14, 5.15 and 5.18: Debian has no such kernels. The rules of 5.15 are held against directed
  traces alone (`tests/conntrack/test_old_kernels.py`), and those of the others are not known.
"""


def render(outcomes: Sequence[Outcome], seed: int) -> str:
    """The page, for a run whose fuzz began with `seed`."""
    rows = [
        (
            *("kernel", "generation", "evidence as root", "fuzzed packets", "mismatches"),
            *("window compared", "window tests", "lab trials", "not as expected"),
        ),
        ("---",) * 9,
    ]
    for outcome in outcomes:
        kernel, fuzz = outcome.steps.get("kernel", {}), outcome.steps.get("fuzz", {})
        rows.append(
            (
                f"{kernel.get('release', outcome.name)} ({outcome.version})",
                kernel.get("rules", "-"),
                outcome.steps.get("evidence", {}).get("evidence", "-"),
                f"{fuzz.get('packets', 0):,}",
                str(len(fuzz.get("mismatches", ()))),
                "yes" if fuzz.get("windows") else "no",
                outcome.steps.get("bpf", {}).get("summary", "not run"),
                f"{len(outcome.trials)} of {_TRIALS}",
                str(len(outcome.unexpected())),
            )
        )
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = [f"- {outcome.name}: {line}\n" for outcome in outcomes for line in outcome.problems()]
    why = [
        f"- {outcome.name}: no window: {said}\n"
        for outcome in outcomes
        if (said := outcome.steps.get("evidence", {}).get("why"))
    ]
    seeded = f"Seed of the fuzz: {seed}.\n\n"
    return _HEAD + table + "\n" + seeded + "".join((*why, *notes)) + _TAIL
