# SPDX-License-Identifier: MIT
"""Cost of a packet by batch size, tracked flows, rules and workers."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.contenders import Contender
from benchmarks.path import BACKLOG, FLOWS, Arena
from benchmarks.rows import Results
from benchmarks.site import Site

SECTION: Final = "scaling"
BATCH: Final = "batch size"
FLOWS_IN_TABLE: Final = "flows in conntrack"
RULES: Final = "rules in the policy"
WORKERS: Final = "workers"
COST: Final = "CPU a packet"
RATE: Final = "packets a second"
_MAX: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# More packets must wait than the largest batch holds.
_DEEP: Final = (1200, 2000)
_DEEP_QUEUE: Final = "queue_length = 4096\nsocket_buffer_bytes = 16777216"
# At most this many flows send packets; the rest only fill the table.
_SENDING: Final = 50_000


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    compiled = contenders.COMPILED.exists()
    missing = contenders.guard(compiled=compiled).missing
    if missing:
        results.missing(SECTION, contenders.GUARD, missing)
        return
    rounds, count = (2, 5000) if quick else (5, 20_000)
    _sweep(
        results, say, BATCH, rounds, count,
        {
            size: contenders.guard(
                compiled=compiled, name=f"batch {size}", daemon=f"batch = {size}\n{_DEEP_QUEUE}"
            )
            for size in ((1, 64) if quick else (1, 4, 16, 64, 256, 1024))
        },
        backlog=_DEEP,
    )  # fmt: skip
    _sweep(
        results, say, RULES, rounds, count,
        {
            number: contenders.guard(
                compiled=compiled, name=f"{number} rules", policy=_policy(number)
            )
            for number in ((1, 500) if quick else (1, 5, 50, 500))
        },
    )  # fmt: skip
    for flows in (1, 10_000) if quick else (1, 1000, 10_000, 100_000, 1_000_000):
        _flows(results, say, flows, rounds, count, compiled=compiled)
    for workers in (1, 2, 4):
        _workers(results, say, workers, rounds, count, compiled=compiled)


def _policy(rules: int) -> str:
    """A policy of which only the last rule matches."""
    lines = ["[policy]", 'default = "allow"', 'on_unknown = "allow"']
    for number in range(rules - 1):
        third, fourth = divmod(number, 250)
        lines += [
            "[[policy.rule]]",
            f'name = "host-{number}"',
            f'src = "192.0.{third}.{fourth}/32"',
            f'dport = "{1000 + number}..{2000 + number}"',
            'action = "drop"',
        ]
    lines += ["[[policy.rule]]", 'name = "last"', 'reason = ["seq-over"]', 'action = "allow"']
    return "\n".join(lines)


def _sweep(
    results: Results,
    say: Callable[[str], None],
    what: str,
    rounds: int,
    count: int,
    points: dict[int, Contender],
    *,
    backlog: tuple[int, int] = BACKLOG,
) -> None:
    """One curve, with a separate contender for each point, interleaved."""
    with Site() as site:
        arena = Arena(site, say)
        here = {x: one.name for x, one in points.items() if arena.enter(one, results, SECTION)}
        site.open_flows(FLOWS)
        frames = site.seq_over(FLOWS)
        for _ in range(rounds):
            for x, name in here.items():
                cost = arena.cost(name, frames, count, backlog=backlog)
                results.add(SECTION, what, COST, "us", cost.process_us, x=x)


def _flows(
    results: Results,
    say: Callable[[str], None],
    flows: int,
    rounds: int,
    count: int,
    *,
    compiled: bool,
) -> None:
    one = contenders.guard(compiled=compiled)
    try:
        with _room_for(flows), Site() as site:
            arena = Arena(site, say)
            if not arena.enter(one, results, SECTION):
                return
            site.open_flows(flows)
            sending = min(flows, _SENDING)
            frames = site.seq_over(sending, stride=flows // sending)
            for _ in range(rounds):
                cost = arena.cost(one.name, frames, count)
                results.add(SECTION, FLOWS_IN_TABLE, COST, "us", cost.process_us, x=flows)
    except (OSError, RuntimeError) as error:
        results.add(SECTION, FLOWS_IN_TABLE, COST, "us", x=flows, note=str(error))


@contextlib.contextmanager
def _room_for(flows: int) -> Iterator[None]:
    """Raise the kernel's limit of tracked flows, and restore it."""
    before = int(_MAX.read_text(encoding="ascii"))
    wanted = flows + flows // 8 + 1000
    if wanted <= before:
        yield
        return
    _MAX.write_text(f"{wanted}\n", encoding="ascii")
    try:
        yield
    finally:
        _MAX.write_text(f"{before}\n", encoding="ascii")


def _workers(
    results: Results,
    say: Callable[[str], None],
    workers: int,
    rounds: int,
    count: int,
    *,
    compiled: bool,
) -> None:
    with Site() as site:
        arena = Arena(site, say)
        one = contenders.guard(compiled=compiled, name=f"{workers} workers", workers=workers)
        if not arena.enter(one, results, SECTION, queues_in_all=workers):
            return
        site.open_flows(FLOWS)
        frames = site.seq_over(FLOWS)
        for _ in range(rounds):
            cost = arena.cost(one.name, frames, count, queues_in_all=workers)
            results.add(SECTION, WORKERS, COST, "us", cost.process_us, x=workers)
            results.add(SECTION, WORKERS, RATE, "1/s", cost.pps, x=workers)
