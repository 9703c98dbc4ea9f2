# SPDX-License-Identifier: MIT
"""The story for somebody who meets the guard for the first time, measured while it is told."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Final

from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK
from nfq_guard.lab.matrix import Task, run_all
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.trial import Keep
from nfq_guard.lab.wiretap import Seen

_SCENARIO: Final = "kube-proxy-dnat"
_SHOWN_SEGMENTS: Final = 8

# How a line is meant; the caller knows how that looks.
HEADING: Final = "heading"
PLAIN: Final = "plain"
BAD: Final = "bad"
GOOD: Final = "good"

Tell = Callable[[str, str], None]


def run(tell: Tell) -> int:
    """Tell it line by line to `tell`, text and meaning; 0 if both halves were measured so."""
    tell("A connection dies, and lives: a Kubernetes service in three network namespaces", HEADING)
    tell("", PLAIN)
    tell("  client 192.0.2.2  ----  node  ----  pod 10.244.0.2:8080", PLAIN)
    tell(
        "  The client talks to the service 10.96.0.10:80; the node translates it to the pod.", PLAIN
    )
    tell("  Then one late segment of the pod lies far beyond the client's window.", PLAIN)
    tasks = [Task(SCENARIOS[_SCENARIO], each) for each in (Mitigation.NONE, Mitigation.GUARD)]
    results: list[Result] = []
    with closing(run_all(tasks, Keep())) as runs:
        for result in runs:
            results.append(result)
            tell("", PLAIN)
            if result.mitigation is Mitigation.NONE:
                _without(result, tell)
            else:
                _with(result, tell)
    died, lived = (result.outcome for result in results)
    return EXIT_OK if (died, lived) == (Outcome.RESET, Outcome.SURVIVED) else EXIT_NOT_FINE


def _without(result: Result, tell: Tell) -> None:
    tell("Without the guard", HEADING)
    _wire(result.wire, tell)
    tell(f"  The kernel called {result.invalid} packets INVALID and translated neither.", PLAIN)
    if result.outcome is Outcome.RESET:
        tell(
            "  The client does not know the pod's address and answers RST: the next request fails.",
            PLAIN,
        )
        tell("  Connection reset by peer.", BAD)
    else:
        tell(f"  Expected a reset, found that the connection {result.outcome}.", BAD)


def _with(result: Result, tell: Tell) -> None:
    tell("With nfq-guard run --mode enforce", HEADING)
    for event in result.events:
        _event(event, tell)
    _wire(result.wire, tell)
    if result.outcome is Outcome.SURVIVED:
        tell("  No RST: the client never saw the segment, and every request got its answer.", PLAIN)
        tell("  The connection lives.", GOOD)
    else:
        tell(f"  Expected it to live, found: {result.outcome}.", BAD)


def _wire(segments: Sequence[Seen], tell: Tell) -> None:
    """What passed, each segment on each link, up to a handful."""
    begin = segments[0].time_ns if segments else 0
    for segment in segments[:_SHOWN_SEGMENTS]:
        after_ms = (segment.time_ns - begin) / 1e6
        side = {"inner": "node-pod", "outer": "client-node"}.get(segment.link, segment.link)
        line = f"  {after_ms:7.2f} ms  {side:<11}  {segment!s:<40}  {segment.describe()}"
        tell(line, BAD if segment.is_rst or _escaped(segment) else PLAIN)


def _escaped(segment: Seen) -> bool:
    return segment.link == "outer" and segment.src[0].startswith("10.244.")


def _event(event: Mapping[str, object], tell: Tell) -> None:
    tell(
        f"  guard: {event.get('reason')}: {event.get('src')}:{event.get('sport')} > "
        f"{event.get('dst')}:{event.get('dport')} seq {event.get('seq')}",
        PLAIN,
    )
    breach = event.get("breach")
    if isinstance(breach, Mapping):
        tell(
            f"         the window ends at {breach.get('limit')}: "
            f"{breach.get('distance'):,} octets beyond it",
            PLAIN,
        )
    tell(
        f"         translated flow ({event.get('nat')}), rule {event.get('rule')}: "
        f"{event.get('verdict')}",
        PLAIN,
    )
