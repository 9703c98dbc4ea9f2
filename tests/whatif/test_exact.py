# SPDX-License-Identifier: MIT
"""What `whatif` says of a recording is what a policy on trial counted live."""

import gzip
import itertools
import lzma
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_guard.cli.recording import opened
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.shadow import Difference
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
