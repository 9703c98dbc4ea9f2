# SPDX-License-Identifier: MIT
"""F21: hours of traffic, reloads, flushed rules and rotated logs; memory, files and delays.

The packets are sent in rounds, so that the campaign's own memory is bounded. The daemon is measured
at the end of each round, and all measurements are drawn in docs/soak.svg.

Delays differ by a quarter from round to round, and with the machine's speed from one minute to the
next. So the delay is compared with that of a daemon that has just been started, in turn, not with
the delay of ten minutes before.
"""

import random
import statistics
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults.gateway import Stream
from tests.faults.outcome import Outcome, percentile
from tests.faults.rig import Rig, Size, fewest_files, rig
from tests.support.queue import GuardProcess, wait_for

PICTURE: Final = Path(__file__).parents[2] / "docs" / "soak.svg"
_PPS: Final = 2000
_ROUNDS: Final = 60
_PAUSE_S: Final = 0.25
# Growth until tables and pools have reached their size is not a leak.
_WARM: Final = 0.2
_LINES: Final = ('fail_mode = "closed"', "queue_length = 8192", "verify_rules_s = 1")
# Turns of each of the two daemons that are compared, and the seconds of one.
_TURNS_MAX: Final = 20
_TURN_MAX_S: Final = 5.0


class Sample(NamedTuple):
    """The daemon at the end of one round."""

    minutes: float
    rss_mb: float
    files: int
    # The 99th percentile of the round.
    delay_ms: float


class _Fates:
    """What became of all packets."""

    def __init__(self) -> None:
        self.sent = self.lost = self.leaked = 0
        self.exact = True

    def add(self, stream: Stream) -> None:
        self.exact = self.exact and not stream.discrepancy()
        self.sent += stream.sent
        self.lost += len(stream.lost())
        self.leaked += len(stream.leaked())


def soak(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """F21."""
    samples: list[Sample] = []
    fates = _Fates()
    with _started(at) as guard:
        before = _rules(at)
        begun = time.monotonic()
        while not samples or time.monotonic() - begun < size.soak_s:
            stream = _round(at, size.soak_s / _ROUNDS, rng)
            fates.add(stream)
            # Without load, because packets that pass without rules are not counted.
            at.gateway.host.run("iptables", "-t", "mangle", "-F")
            wait_for(lambda: _rules(at) == before)
            samples.append(_sample(guard.process.pid, (time.monotonic() - begun) / 60, stream))
        soaked, fresh = _beside_a_fresh_one(at, size, rng, fates)
        assert guard.stop() == 0
    PICTURE.write_text(picture(samples), encoding="ascii")
    warm = samples[int(len(samples) * _WARM) :]
    slope = _slope([one.minutes for one in warm], [one.rss_mb for one in warm])
    third = max(1, len(warm) // 3)
    drift = soaked / fresh - 1
    more_files = min(one.files for one in warm[-third:]) - min(one.files for one in warm[:third])
    unharmed = not fates.lost and not fates.leaked
    return Outcome(
        "F21",
        f"{samples[-1].minutes:.1f} minutes of {_PPS} packets/s, {fates.sent} in all, with "
        f"reloads, rotated logs and {len(samples)} flushed rulesets",
        "nothing lost or let through; memory grows by 0.1 MB a minute at most, no descriptor more, "
        "the 99th percentile of the delay 10 % over that of a fresh daemon at most",
        f"{fates.lost} lost, {fates.leaked} let through, {slope:+.3f} MB a minute, "
        f"{more_files} descriptors more, delay {soaked * 1e3:.2f} ms and {fresh * 1e3:.2f} ms of a "
        f"fresh daemon in turn ({drift:+.0%})",
        unharmed and slope <= 0.1 and more_files <= 0 and drift <= 0.1,
        fates.exact,
    )


@contextmanager
def _started(at: Rig) -> Iterator[GuardProcess]:
    """The daemon with its rules."""
    with at.start(*_LINES, f'log = "{at.folder}/rotated"', log="unused") as guard:
        wait_for(lambda: at.socket.exists() and bool(_rules(at)[2:]))
        yield guard


def _round(at: Rig, seconds: float, rng: random.Random) -> Stream:
    """Traffic for a time, with reloads and rotated logs."""
    with at.gateway.stream(_PPS) as stream:
        until = time.monotonic() + seconds
        while time.monotonic() < until or not stream.arrived:
            time.sleep(_PAUSE_S)
            at.ask(rng.choice(["status", "ping"]))
            if rng.random() < 0.1:
                (at.folder / "rotated").rename(at.folder / "rotated.1")
            assert at.ask("reload", wait=True)["return"] == "OK"
    return stream


def _beside_a_fresh_one(
    at: Rig, size: Size, rng: random.Random, fates: _Fates
) -> tuple[float, float]:
    """The 99th percentile of the delay, seconds: of this daemon, and of one just started."""
    seconds = min(_TURN_MAX_S, size.soak_s / 12)
    delays = (array("d"), array("d"))
    with rig(at.folder / "fresh") as other, _started(other) as guard:
        fates.add(_round(other, 2 * seconds, rng))
        for turn in range(max(2, min(_TURNS_MAX, size.soak_s // 30))):
            for which in (0, 1) if turn % 2 else (1, 0):
                stream = _round((at, other)[which], seconds, rng)
                fates.add(stream)
                delays[which].extend(stream.delays)
        assert guard.stop() == 0
    return percentile(delays[0], 0.99), percentile(delays[1], 0.99)


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
