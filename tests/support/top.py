# SPDX-License-Identifier: MIT
"""Pictures of `top` at several sizes, over made-up flows.

`python -m tests.support.top` writes them anew after an intended change.
"""

from pathlib import Path
from typing import Any, Final

from nfq_guard.cli.top_flow import key_of
from nfq_guard.cli.top_view import View
from tests.support.events import event, window
from tests.support.status import daemon_status, queue_status

FOLDER: Final = Path(__file__).parents[1] / "cli" / "top"
SIZES: Final = ((20, 16), (80, 24), (140, 30), (300, 40))


def flow(
    *events: dict[str, Any], reasons: dict[str, int] | None = None, resets: int = 0, first: str = ""
) -> dict[str, Any]:
    """A flow as in the daemon's response to `dump`."""
    last = {name: value for name, value in events[-1].items() if name != "event"}
    found = [{name: value for name, value in one.items() if name != "event"} for one in events]
    ends = sorted(((last["src"], last["sport"]), (last["dst"], last["dport"])))
    return {
        "flow": {
            "proto": last["proto"],
            "a": ends[0][0],
            "a_port": ends[0][1] or 0,
            "b": ends[1][0],
            "b_port": ends[1][1] or 0,
        },
        "first": first or events[0]["timestamp"],
        "last": last["timestamp"],
        "packets": sum((reasons or {last["reason"]: 1}).values()),
        "reasons": reasons or {last["reason"]: 1},
        "resets": resets,
        "events": found,
    }


def at(second: int) -> str:
    """A time in the format of events."""
    return f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000000Z"


def flows(later: int) -> list[dict[str, Any]]:
    """The flows, `later` seconds after the first response."""
    reset = {
        "timestamp": at(90),
        "reason": "seq-over",
        "rule": "translated",
        "delay_us": 300,
    }
    return [
        flow(
            event(timestamp=at(90 + later), window=window(), verdict="drop", mode="enforce"),
            reasons={"bad-flags": 20, "seq-over": 1300 + 30 * later},
            first=at(10),
        ),
        flow(
            event(
                timestamp=at(91),
                src="255.255.255.254",
                sport=65535,
                dst="255.255.255.253",
                dport=65534,
                verdict="drop",
                mode="enforce",
            ),
            reasons={"seq-over": 7, "ack-over": 5},
        ),
        flow(
            event(timestamp=at(80), nat="dnat", rule="shadowed", action="log", would="accept"),
            event(
                timestamp=at(90),
                src="192.0.2.77",
                dst="10.244.0.9",
                sport=51000,
                dport=9090,
                tcp_flags="R",
                reason="no-entry",
                breach=None,
                nat="unknown",
                direction=None,
                state=None,
                rule="no-entry",
                action="allow",
                would="accept",
                caused_by=reset,
            ),
            reasons={"no-entry": 1, "seq-over": 2},
            resets=1,
        ),
        flow(
            event(
                timestamp=at(70),
                family=6,
                src="2001:db8:ffff:ffff:ffff:ffff:ffff:fff1",
                dst="2001:db8:ffff:ffff:ffff:ffff:ffff:fff2",
                sport=50123,
                verdict="drop",
                mode="enforce",
            ),
            reasons={"seq-over": 9},
        ),
    ]


def view(*, ipv6: bool = True, unicode: bool = True) -> View:
    """A view after ten responses, one a second."""
    made = View(unicode=unicode)
    for second in range(10):
        status = daemon_status(
            queues=(queue_status(packets=1344 + 30 * second, caused_resets=1),),
            reasons={
                "seq-over": {"drop": 1316 + 30 * second},
                "bad-flags": {"drop": 20},
                "ack-over": {"drop": 5},
                "no-entry": {"allow": 1},
            },
        )
        found = flows(second)
        made.take(status, found if ipv6 else found[:3], 100.0 + second)
    return made


def text(lines: list[Any]) -> str:
    """Lines without their styles."""
    return "".join("".join(piece.text for piece in line).rstrip() + "\n" for line in lines)


def pictures() -> dict[str, str]:
    """The pictures by file name."""
    found = {}
    for width, height in SIZES:
        for name, opened in (("table", False), ("flow", True)):
            made = view(ipv6=width != 80)
            if opened:
                made.choice.opened = key_of(flows(0)[0])
            found[f"{name}-{width}x{height}.txt"] = text(made.lines(height, width))
    made = view()
    made.choice.helping = True
    found["help-80x24.txt"] = text(made.lines(24, 80))
    found["long-80x24.txt"] = text(view().lines(24, 80))
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
