# SPDX-License-Identifier: MIT
"""The counts of `whatif` over a recording equal those of a policy on trial live."""

import gzip
import io
import itertools
import json
import lzma
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_guard.cli.recording import opened
from nfq_guard.names import flow_status_bits
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.shadow import Difference
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.journal import JournalRenderer
from nfq_guard.telemetry.reader import EventReader
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.tally import Tally
from nfq_guard.whatif.trial import Trial
from tests.support.policies import Case, tables
from tests.support.recording import CASES, LIMITS, TRAFFIC, Limits, Live, Traffic, compiled


def asked_again(live: Live, acting: CompiledPolicy, trial: CompiledPolicy) -> Trial:
    """Both policies over the recording."""
    again = Trial([acting, trial])
    for read in live.recorded():
        for packets in recorded(read):
            again.take(packets)
    again.end()
    return again


def pairs(again: Trial, live: Live) -> list[tuple[Tally, int]]:
    """Each tally, with the drops that were counted live."""
    only_a, only_b = again.differences
    return [
        (again.tallies[0], live.drops[0]),
        (again.tallies[1], live.drops[1]),
        (only_a, live.differences[Difference.ONLY_ACTING_DROPS]),
        (only_b, live.differences[Difference.ONLY_SHADOW_DROPS]),
    ]


@given(acting=tables(), trial=tables(), packets=CASES, traffic=TRAFFIC, limits=LIMITS)
def test_whatif_equals_the_live_counters(
    acting: dict[str, object],
    trial: dict[str, object],
    packets: list[Case],
    traffic: Traffic,
    limits: Limits,
) -> None:
    """To the packet, short of what the limit on all events suppressed, which is counted."""
    live = Live(compiled(acting), compiled(trial), limits)
    live.run(packets, traffic)
    again = asked_again(live, compiled(acting), compiled(trial))
    suppressed = live.limiter.suppressed
    assert again.packets + suppressed == live.packets
    for tally, drops in pairs(again, live):
        assert tally.exact
        assert tally.least_drops == tally.drops
        assert drops - suppressed <= tally.drops <= drops


def rotated(folder: Path, pieces: Sequence[bytes], squeeze: Callable[[bytes], bytes]) -> list[Path]:
    """Files as logrotate leaves them, the oldest first: all but the last two compressed."""
    last = len(pieces) - 1
    files = []
    for number, piece in enumerate(pieces):
        file = folder / (f"events.jsonl.{last - number}" if number < last else "events.jsonl")
        file.write_bytes(squeeze(piece) if number < last - 1 else piece)
        files.append(file)
    return files


# Each example compiles six policies and writes up to six files.
@settings(max_examples=settings().max_examples // 3)
@given(
    acting=tables(),
    trial=tables(),
    packets=CASES,
    traffic=TRAFFIC,
    limits=LIMITS,
    restart=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    squeeze=st.sampled_from([gzip.compress, lzma.compress]),
)
def test_whatif_equals_the_live_counters_over_rotations_and_a_restart(
    acting: dict[str, object],
    trial: dict[str, object],
    packets: list[Case],
    traffic: Traffic,
    limits: Limits,
    restart: int,
    cuts: list[int],
    squeeze: Callable[[bytes], bytes],
) -> None:
    """Each file by itself, and the compressed ones joined, as `cat` does it."""
    lives = [Live(compiled(acting), compiled(trial), limits) for _ in range(2)]
    lives[0].run(packets, traffic[:restart])
    lives[1].run(packets, traffic[restart:])
    lines = lives[0].lines() + lives[1].lines()
    ends = [0, *sorted(min(cut, len(lines)) for cut in cuts), len(lines)]
    pieces = [b"".join(lines[a:b]) for a, b in itertools.pairwise(ends)]
    again, joined = (Trial([compiled(acting), compiled(trial)]) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        files = rotated(Path(folder), pieces, squeeze)
        one = Path(folder) / "joined"
        one.write_bytes(b"".join(squeeze(piece) for piece in pieces))
        for whole, names in ((again, files), (joined, [one])):
            for name in names:
                with opened(str(name)) as stream:
                    reader = EventReader()
                    for read in reader.read(stream):
                        for taken in recorded(read):
                            whole.take(taken)
                    assert reader.skipped == 0
            whole.end()
    suppressed = sum(live.limiter.suppressed for live in lives)
    assert again.packets + suppressed == len(traffic)
    assert joined.packets == again.packets
    for number, tally in enumerate(again.tallies):
        drops = sum(live.drops[number] for live in lives)
        assert drops - suppressed <= tally.drops <= drops
        assert joined.tallies[number].drops == tally.drops


def older(line: bytes) -> bytes:
    """A line as the first daemons wrote it."""
    fields = json.loads(line)
    for name in ("mark", "ct_mark"):
        if not fields.get(name):
            fields.pop(name, None)
    if fields.get("status") is not None:
        fields["status"] = flow_status_bits(tuple(fields["status"]))
    return json.dumps(fields).encode() + b"\n"


def newer(line: bytes) -> bytes:
    """A line of a daemon with a field that this one does not know."""
    return line.rstrip()[:-1] + b', "unheard_of": {"event": ["packet_judged", 1]}}\n'


def eve(line: bytes) -> bytes:
    """A line in the format `eve`."""
    return b'{"timestamp":"2026-01-02T03:04:05Z","nfq_guard":' + line.rstrip() + b"}\n"


RENDERER = JournalRenderer()


def journalled(line: bytes) -> bytes:
    """An event that the daemon wrote to the journal, as `journalctl -o json` prints it."""
    (read,) = EventReader().read(io.BytesIO(line))
    entry: dict[str, str | list[str]] = {"__REALTIME_TIMESTAMP": "1767323045000000"}
    for field in RENDERER(None, "", {"event": read.event, "at": ""}).decode().splitlines():
        key, _, value = field.partition("=")
        known = entry.get(key)
        if known is not None:  # more than one value of a field
            entry[key] = [*([known] if isinstance(known, str) else known), value]
        elif value:
            entry[key] = value
    return json.dumps(entry).encode() + b"\n"


# Each example compiles up to eight policies.
@settings(max_examples=settings().max_examples // 3)
@given(
    acting=tables(),
    trial=tables(),
    packets=CASES,
    workers=st.lists(TRAFFIC, min_size=1, max_size=3),
    limits=LIMITS,
    step=st.tuples(st.integers(0, 60), st.sampled_from([-4e8, -3600.0, -0.5, 0.5, 1e5, 4e8])),
    order=st.randoms(use_true_random=False),
    versions=st.lists(
        st.sampled_from([bytes, older, newer, eve, journalled]), min_size=1, max_size=5
    ),
    lost=st.integers(0, 2000),
)
def test_whatif_and_report_equal_the_live_counters_over_a_file_in_disorder(
    acting: dict[str, object],
    trial: dict[str, object],
    packets: list[Case],
    workers: list[Traffic],
    limits: Limits,
    step: tuple[int, float],
    order: Random,
    versions: list[Callable[[bytes], bytes]],
    lost: int,
) -> None:
    """Several workers, of several versions, write one file; the clock is set; the end is cut."""
    lives = [Live(compiled(acting), compiled(trial), limits) for _ in workers]
    for live, traffic in zip(lives, workers, strict=True):
        live.run(packets, traffic[: step[0]])
        live.epoch += step[1]
        live.run(packets, traffic[step[0] :])
    queues = [live.lines() for live in lives]
    turns = [number for number, lines in enumerate(queues) for _ in lines]
    order.shuffle(turns)
    sources = [iter(lines) for lines in queues]
    plain = [next(sources[number]) for number in turns]
    lines = [write(line) for line, write in zip(plain, itertools.cycle(versions), strict=False)]
    cut = 0
    if lines:
        kept = lines[-1][: max(0, len(lines[-1]) - lost)]
        if len(kept) < len(lines[-1]) - 1:
            cut = json.loads(plain[-1]).get("count", 1)
        lines[-1] = kept
    again = Trial([compiled(acting), compiled(trial)])
    summary = Summary()
    reader = EventReader()
    for read in reader.read(io.BytesIO(b"".join(lines))):
        add_event(summary, read)
        for taken in recorded(read):
            again.take(taken)
    again.end()
    assert reader.skipped == (cut > 0 and bool(lines[-1]))
    missing = cut + sum(live.limiter.suppressed for live in lives)
    assert again.packets + missing == sum(map(len, workers))
    assert summary.counts.packets == again.packets
    resets = sum(live.resets.total() for live in lives)
    assert resets - missing <= summary.counts.resets <= resets
    for number, tally in enumerate(again.tallies):
        drops = sum(live.drops[number] for live in lives)
        assert drops - missing <= tally.drops <= drops


@given(
    acting=tables(with_rates=True),
    trial=tables(with_rates=True),
    packets=CASES,
    traffic=TRAFFIC,
    limits=LIMITS,
)
def test_estimates_are_within_their_bounds(
    acting: dict[str, object],
    trial: dict[str, object],
    packets: list[Case],
    traffic: Traffic,
    limits: Limits,
) -> None:
    """A rate depends on times that a recording does not have."""
    live = Live(compiled(acting), compiled(trial), limits)
    live.run(packets, traffic)
    again = asked_again(live, compiled(acting), compiled(trial))
    suppressed = live.limiter.suppressed
    for tally, drops in pairs(again, live):
        assert tally.least_drops <= tally.drops <= tally.most_drops
        assert tally.least_drops <= drops <= tally.most_drops + suppressed
