# SPDX-License-Identifier: MIT
"""Sends chunks of random flows through both trackers, and shrinks each flow on which they differ.

A chunk has its own namespace and sysctls, and follows from the seed and its number alone, so that a
run can be interrupted and resumed at any chunk.
"""

import platform
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from nfq_guard.conntrack.kernel_rules import KernelRules, rules_of
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import IPV4, IPV6, Evidence, FlowSnapshot
from tests.fuzz_kernel.compare import Mismatch, Pair, ends_of, first_mismatch
from tests.fuzz_kernel.generate import next_step, start
from tests.support.live import Conntrack, LiveConntrack
from tests.support.trace import Ends, Step, parse

CHUNK_PACKETS: Final = 10_000
_FLOWS_AT_ONCE: Final = 48
_STEPS_OF_FLOW: Final = 60
RUNNING_KERNEL: Final = rules_of(platform.release())
_Any = TypeVar("_Any")
_CHAOS: Final = (0.03, 0.15, 0.4, 0.8)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The IP version and sysctls that a trace was run with."""

    family: int
    sysctls: Sysctls


@dataclass(frozen=True, slots=True)
class Failure:
    """A flow on which the two trackers differ, shrunk."""

    conditions: Conditions
    steps: tuple[Step, ...]
    mismatch: Mismatch


@dataclass(slots=True)
class Tally:
    """The counts of a run.

    Attributes:
        packets: Segments sent.
        flows: Flows started.
        ctstates: Segments by the index of their ctstate in `CTSTATES`.
        causes: Segments by reason or ignored case; None for those that passed.
        windows: Whether the windows were compared too.
        failures: Flows on which the trackers differ.
    """

    packets: int = 0
    flows: int = 0
    ctstates: Counter[int] = field(default_factory=Counter)
    causes: Counter[Reason | Ignored | None] = field(default_factory=Counter)
    windows: bool = True
    failures: list[Failure] = field(default_factory=list)


@dataclass(slots=True)
class _Flow:
    ends: Ends
    numbers: tuple[int, int]
    chaos: float
    snapshot: FlowSnapshot | None = None
    steps: list[Step] = field(default_factory=list)


def conditions_of(rng: random.Random, kernel: KernelRules = RUNNING_KERNEL) -> Conditions:
    """Draw conditions: mostly the defaults, and sometimes each sysctl that `kernel` has."""
    return Conditions(
        IPV6 if rng.random() < 0.25 else IPV4,
        Sysctls(
            be_liberal=rng.random() < 0.1,
            loose=rng.random() < 0.8,
            ignore_invalid_rst=rng.random() < 0.2 and kernel.ignores_invalid_rst,
            max_retrans=rng.choice((3, 3, 1)),
        ),
    )


def run_chunk(
    seed: int,
    number: int,
    tally: Tally,
    packets: int = CHUNK_PACKETS,
    kernel: KernelRules = RUNNING_KERNEL,
    conntrack: Callable[[Sysctls], AbstractContextManager[Conntrack]] = LiveConntrack,
) -> None:
    """Run chunk `number` of `seed` by the rules of `kernel` and add it to `tally`."""
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - reproducible, no secret
    conditions = conditions_of(rng, kernel)
    with conntrack(conditions.sysctls) as live:
        tally.windows = live.evidence is Evidence.BPF
        pair = Pair(live, kernel, conditions.sysctls)
        serial = 0
        stop_at = tally.packets + packets
        while tally.packets < stop_at:
            flows = [
                _Flow(ends_of(conditions.family, serial + each), start(rng), rng.choice(_CHAOS))
                for each in range(_FLOWS_AT_ONCE)
            ]
            serial += len(flows)
            tally.flows += len(flows)
            for flow, differences in _run_flows(rng, pair, flows, tally):
                failure = shrink(pair, conditions, flow.steps, differences, serial)
                serial += 10_000
                tally.failures.append(failure)


def _run_flows(
    rng: random.Random, pair: Pair, flows: list[_Flow], tally: Tally
) -> list[tuple[_Flow, list[str]]]:
    """Run flows in parallel, a segment of each in turn; returns those that differ, and how."""
    failed: list[tuple[_Flow, list[str]]] = []
    for _ in range(_STEPS_OF_FLOW):
        if not flows:
            break  # all of them differ
        steps = []
        for flow in flows:
            step = next_step(rng, flow.snapshot, flow.numbers, flow.chaos)
            flow.steps.append(step)
            steps.append((flow.ends, step))
        going_on: list[_Flow] = []
        for flow, outcome in zip(flows, pair.step_all(steps), strict=True):
            flow.snapshot = outcome.snapshot
            tally.packets += 1
            tally.ctstates[outcome.ctstate] += 1
            tally.causes[outcome.cause] += 1
            if outcome.differences:
                failed.append((flow, outcome.differences))
            else:
                going_on.append(flow)
        flows = going_on
    return failed


def shrink(
    pair: Pair,
    conditions: Conditions,
    steps: Sequence[Step],
    differences: Sequence[str],
    serial: int,
) -> Failure:
    """Shrink a trace that differs, by removing (ddmin) and simplifying steps.

    Args:
        pair: Both trackers, still under `conditions`.
        conditions: The conditions, for the `Failure`.
        steps: A trace that differed.
        differences: The differences found.
        serial: Ends from this number on are unused.
    """
    numbers = iter(range(serial, serial + 9_000))
    found = Mismatch(len(steps) - 1, (*differences, "does not differ when run alone"))

    def differs(candidate: Sequence[Step]) -> bool:
        nonlocal found
        number = next(numbers, None)
        if number is None:
            return False
        mismatch = first_mismatch(pair, ends_of(conditions.family, number), candidate)
        if mismatch is not None:
            found = mismatch
        return mismatch is not None

    kept = list(steps)
    if differs(kept):
        kept = _simplify(ddmin(kept[: found.step + 1], differs), differs)
        differs(kept)
    return Failure(conditions, tuple(kept), found)


def ddmin(steps: list[_Any], differs: Callable[[Sequence[_Any]], bool]) -> list[_Any]:
    """The shortest list found that still differs, by removing ever smaller parts."""
    size = max(1, len(steps) // 2)
    while True:
        at = 0
        removed = False
        while at < len(steps):
            candidate = steps[:at] + steps[at + size :]
            if candidate and differs(candidate):
                steps = candidate
                removed = True
            else:
                at += size
        if not removed:
            if size == 1:
                return steps
            size //= 2


def _simplify(steps: list[Step], differs: Callable[[Sequence[Step]], bool]) -> list[Step]:
    for index in range(len(steps)):
        for simpler in (
            {"options": b""},
            {"payload_len": 0},
            {"payload_len": 1},
            {"win": 65535},
            {"win": 1000},
            {"flags": steps[index].flags & 0x17},
        ):
            candidate = list(steps)
            candidate[index] = replace(steps[index], **simpler)
            if candidate != steps and differs(candidate):
                steps = candidate
    return steps


def write_trace(failure: Failure, path: Path) -> None:
    """Keep a failure as a trace file that `read_trace` and the regression test read."""
    sysctls = failure.conditions.sysctls
    lines = [
        *(f"# {what}" for what in failure.mismatch.what),
        f"family {failure.conditions.family}",
        *(f"sysctl {name} {int(getattr(sysctls, name))}" for name in _SYSCTLS),
        *(str(step) for step in failure.steps),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


_SYSCTLS: Final = ("be_liberal", "loose", "ignore_invalid_rst", "max_retrans")


def read_trace(path: Path) -> tuple[Conditions, list[Step]]:
    """Read a file of `write_trace`, or one written by hand."""
    family = IPV4
    sysctls: dict[str, int] = {}
    steps: list[Step] = []
    for line in path.read_text(encoding="ascii").splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0] == "family":
            family = int(words[1])
        elif words[0] == "sysctl":
            sysctls[words[1]] = int(words[2])
        else:
            steps.append(parse(line))
    chosen = Sysctls(
        be_liberal=bool(sysctls.get("be_liberal", 0)),
        loose=bool(sysctls.get("loose", 1)),
        ignore_invalid_rst=bool(sysctls.get("ignore_invalid_rst", 0)),
        max_retrans=sysctls.get("max_retrans", 3),
    )
    return Conditions(family, chosen), steps
