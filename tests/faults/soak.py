# SPDX-License-Identifier: MIT
"""F21: hours of traffic, reloads, flushed rules and rotated logs; memory, files and delays.

The packets are sent in rounds, so that the campaign's own memory is bounded. The daemon is measured
at the end of each round, and all measurements are drawn in docs/soak.svg.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults.gateway import Stream
from tests.faults.outcome import Outcome, percentile
from tests.faults.rig import Rig, Size, fewest_files
from tests.support.queue import wait_for

PICTURE: Final = Path(__file__).parents[2] / "docs" / "soak.svg"
_PPS: Final = 2000
_ROUNDS: Final = 60
_PAUSE_S: Final = 0.25
# Growth until tables and pools have reached their size is not a leak.
_WARM: Final = 0.2


class Sample(NamedTuple):
    """The daemon at the end of one round."""

    minutes: float
    rss_mb: float
    files: int
    # The 99th percentile of the round.
    delay_ms: float


def soak(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F21."""
    samples: list[Sample] = []
    sent = lost = leaked = 0
    exact = True
    lines = ('fail_mode = "closed"', "queue_length = 8192", "verify_rules_s = 1")
    with at.start(*lines, f'log = "{at.folder}/rotated"', log="unused") as guard:
        wait_for(lambda: at.socket.exists() and bool(_rules(at)[2:]))
        before = _rules(at)
        begun = time.monotonic()
        while not samples or time.monotonic() - begun < size.soak_s:
            with at.gateway.stream(_PPS) as stream:
                until = time.monotonic() + size.soak_s / _ROUNDS
                while time.monotonic() < until or not stream.arrived:
                    time.sleep(_PAUSE_S)
                    at.ask(rng.choice(["status", "ping"]))
                    if rng.random() < 0.1:
                        (at.folder / "rotated").rename(at.folder / "rotated.1")
                    assert at.ask("reload", wait=True)["return"] == "OK"
            exact = exact and not stream.discrepancy()
            sent += stream.sent
            lost += len(stream.lost())
            leaked += len(stream.leaked())
            # Without load, because packets that pass without rules are not counted.
            at.gateway.host.run("iptables", "-t", "mangle", "-F")
            wait_for(lambda: _rules(at) == before)
            samples.append(_sample(guard.process.pid, (time.monotonic() - begun) / 60, stream))
        assert guard.stop() == 0
    PICTURE.write_text(picture(samples), encoding="ascii")
    warm = samples[int(len(samples) * _WARM) :]
    slope = _slope([one.minutes for one in warm], [one.rss_mb for one in warm])
    third = max(1, len(warm) // 3)
    early, late = (
        statistics.median(one.delay_ms for one in part) for part in (warm[:third], warm[-third:])
    )
    drift = late / early - 1
    more_files = min(one.files for one in warm[-third:]) - min(one.files for one in warm[:third])
    return Outcome(
        "F21",
        f"{samples[-1].minutes:.1f} minutes of {_PPS} packets/s, {sent} in all, with reloads, "
        f"rotated logs and {len(samples)} flushed rulesets",
        "nothing lost or let through; memory grows by 0.1 MB a minute at most, no descriptor more, "
        "the 99th percentile of the delay by 10 % at most",
        f"{lost} lost, {leaked} let through, {slope:+.3f} MB a minute, "
        f"{more_files} descriptors more, delay {early:.2f} ms early and {late:.2f} ms late "
        f"({drift:+.0%})",
        not lost and not leaked and slope <= 0.1 and more_files <= 0 and drift <= 0.1,
        exact,
    )


def _rules(at: Rig) -> list[str]:
    saved = at.gateway.host.run("iptables-save").stdout
    return [line for line in saved.splitlines() if line.startswith("-A")]


def _sample(pid: int, minutes: float, stream: Stream) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return Sample(
        minutes=minutes,
        rss_mb=int(status.partition("VmRSS:")[2].split()[0]) / 1024,
        files=fewest_files(pid),
        delay_ms=percentile(stream.delays, 0.99) * 1e3,
    )


def _slope(x: list[float], y: list[float]) -> float:
    """The slope of the least-squares line; 0 for a single point."""
    return statistics.linear_regression(x, y).slope if len(x) > 1 else 0.0


_WIDTH: Final = 720
_HEIGHT: Final = 120
_LEFT: Final = 90
_TOP: Final = 24


def picture(samples: list[Sample]) -> str:
    """One curve below the other, over the minutes, as SVG."""
    rows = (
        ("memory, MB", [one.rss_mb for one in samples]),
        ("descriptors", [float(one.files) for one in samples]),
        ("delay (99 %), ms", [one.delay_ms for one in samples]),
    )
    end = max(samples[-1].minutes, 1e-9)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" '
        f'height="{len(rows) * (_HEIGHT + _TOP) + 30}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, (name, values) in enumerate(rows):
        top = place * (_HEIGHT + _TOP) + _TOP
        most = max(values) * 1.1 or 1.0
        points = " ".join(
            f"{_LEFT + _WIDTH * one.minutes / end:.1f},{top + _HEIGHT * (1 - value / most):.1f}"
            for one, value in zip(samples, values, strict=True)
        )
        parts += [
            f'<text x="{_LEFT}" y="{top - 8}">{name}</text>',
            f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{most:.1f}</text>',
            f'<text x="{_LEFT - 6}" y="{top + _HEIGHT}" text-anchor="end">0</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" '
            'stroke="#bbb"/>',
            f'<polyline points="{points}" fill="none" stroke="#0a6" stroke-width="1.5"/>',
        ]
    bottom = len(rows) * (_HEIGHT + _TOP) + 18
    parts += [
        f'<text x="{_LEFT}" y="{bottom}">0</text>',
        f'<text x="{_LEFT + _WIDTH}" y="{bottom}" text-anchor="end">{end:.1f} minutes</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
