# SPDX-License-Identifier: MIT
"""Made-up events of one incident, and their page."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nfq_guard.cli import main
from tests.support.events import event, window

_NOON: Final = 1_764_331_200


def stamp(second: float) -> str:
    when = datetime.fromtimestamp(_NOON + second, UTC)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def story() -> Iterator[dict[str, Any]]:
    """Packets of a service escape translation and kill connections, and are dropped later."""
    numbers = random.Random(1)  # noqa: S311 - the same story in every run
    for second in range(0, 600, 3):
        port = 40000 + second % 40
        changes: dict[str, Any] = {"dport": port, "sport": 8080 + second % 4}
        if second >= 400:
            changes |= {"mode": "enforce", "verdict": "drop"}
        distance = numbers.randrange(1, 1 << numbers.randrange(4, 20))
        breach = {"bound": "seq-over", "actual": 1000 + distance, "limit": 1000}
        yield event(
            timestamp=stamp(second),
            seq=1000 + distance,
            breach=breach | {"distance": distance},
            window=window(),
            **changes,
        )
        if second % 30 == 0 and second < 400:
            yield event(
                timestamp=stamp(second + 0.0012),
                src="192.0.2.2",
                dst="10.244.0.2",
                sport=port,
                dport=8080 + second % 4,
                tcp_flags="R",
                reason="no-entry",
                breach=None,
                nat="unknown",
                direction=None,
                status=None,
                state=None,
                caused_by={
                    "timestamp": stamp(second),
                    "reason": "seq-over",
                    "rule": "translated",
                    "delay_us": 1200,
                },
            )
    yield event(
        timestamp=stamp(599),
        first=stamp(590),
        count=90,
        reason="bad-checksum",
        breach=None,
        nat="none",
    )


def write(path: Path, events: Iterator[dict[str, Any]], *words: str) -> Path:
    log = path / "events.jsonl"
    log.write_text("".join(json.dumps(one) + "\n" for one in events), encoding="utf-8")
    page = path / "page.html"
    assert main(["report", str(log), "-o", str(page), *words]) == 0
    return page
