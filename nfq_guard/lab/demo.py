# SPDX-License-Identifier: MIT
"""The demo: one connection with and without the guard, measured and printed step by step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK
from nfq_guard.lab.matrix import Task, run_all
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.strays import PAYLOAD as STRAY_PAYLOAD
from nfq_guard.lab.trial import Keep
from nfq_guard.lab.wiretap import Address, Segment

_SCENARIO: Final = "kube-proxy-dnat"
_MAX_SEGMENTS: Final = 6
_LINKS: Final = {"inner": "pod side", "outer": "client side"}
_NAMES: Final = {"192.0.2.2": "client", "10.96.0.10": "service", "10.244.0.2": "pod"}

# The tone of a line, which the caller maps to a style.
HEADING: Final = "heading"
PLAIN: Final = "plain"
BAD: Final = "bad"
GOOD: Final = "good"

Write = Callable[[str, str], None]
"""Writes one line; takes its text and its tone."""

_PROLOGUE: Final = """
  client 192.0.2.2  --  node  --  pod 10.244.0.2:8080

  The client connects to the service 10.96.0.10:80, which the node translates to the pod.
  Requests are answered. Then the pod sends one segment far beyond the client's window,
  and the client sends its next request.
"""


def run(write: Write) -> int:
    """Run both halves; exit status 0 if the first ends in a reset and the second survives."""
    write(
        "One stray segment and a healthy connection: a Kubernetes service, in namespaces", HEADING
    )
    for line in _PROLOGUE.splitlines():
        write(line, PLAIN)
    tasks = [Task(SCENARIOS[_SCENARIO], each) for each in (Mitigation.NONE, Mitigation.GUARD)]
    outcomes: list[Outcome] = []
    with closing(run_all(tasks, Keep())) as results:
        for result in results:
            outcomes.append(result.outcome)
            write("", PLAIN)
            if result.mitigation is Mitigation.NONE:
                _without(result, write)
            else:
                _with(result, write)
    return EXIT_OK if outcomes == [Outcome.RESET, Outcome.SURVIVED] else EXIT_NOT_FINE


def _without(result: Result, write: Write) -> None:
    write("Without the guard", HEADING)
    _wire(result.wire, write)
    if result.outcome is Outcome.RESET:
        write(f"  Packets that the kernel called INVALID: {result.invalid}.", PLAIN)
        write("  The client's next request: connection reset by peer.", BAD)
    else:
        write(f"  Expected reset, found {result.outcome}.", BAD)


def _with(result: Result, write: Write) -> None:
    write("With the guard: nfq-guard run --mode enforce", HEADING)
    _wire(result.wire[:1], write)
    for event in result.events:
        _event(event, write)
    _wire(result.wire[1:], write, begin=result.wire[:1])
    if result.outcome is Outcome.SURVIVED:
        resets = f"RST seen: {', '.join(result.rst)}" if result.rst else "No RST anywhere"
        write(f"  {resets}; the client's next request: answered.", GOOD)
    else:
        write(f"  Expected survived, found {result.outcome}.", BAD)


def _wire(segments: Sequence[Segment], write: Write, begin: Sequence[Segment] = ()) -> None:
    """Print the first segments on the links; times are relative to the first of `begin`, if any."""
    start_ns = next((segment.time_ns for segment in (*begin, *segments)), 0)
    for segment in segments[:_MAX_SEGMENTS]:
        remark, tone = _remark(segment)
        kind = "RST " if segment.is_rst else "data" if segment.payload else "ACK "
        ends = f"{_name(segment.src)} > {_name(segment.dst)}"
        write(
            f"  {(segment.time_ns - start_ns) / 1e6:7.2f} ms  {_LINKS[segment.link]:<11}  "
            f"{ends:<19}  {kind} seq {segment.seq:<10}  {remark}".rstrip(),
            tone,
        )


def _name(end: Address) -> str:
    return _NAMES.get(end[0], end[0])


def _remark(segment: Segment) -> tuple[str, str]:
    """A remark on the role of a segment, and its tone."""
    source = _name(segment.src)
    if segment.is_rst:
        if source != "client":
            return "the connection no longer exists", BAD
        if segment.link == "outer":
            return "the client has no connection to the pod", BAD
        return "and kills the pod's connection", BAD
    if segment.link == "outer" and source == "pod":
        return "INVALID, so not translated", BAD
    if segment.payload == STRAY_PAYLOAD:
        return "the stray: INVALID", BAD
    if segment.payload and segment.link == "outer":
        return ("the next request" if source == "client" else "its answer"), PLAIN
    return "", PLAIN


def _event(event: Mapping[str, Any], write: Write) -> None:
    """Print the guard's event: the reason with its numbers, the flow, the rule and the verdict."""
    breach = event["breach"] or {}
    source = event["evidence"]
    source = "the kernel's own window of this flow (bpf)" if source == "bpf" else source
    lines = [f"{event['reason']}, by {source}"]
    if breach:
        lines.append(
            f"seq {breach['actual']}, window ends at {breach['limit']}: {breach['distance']:,} "
            "bytes past it"
        )
    lines.append(f"flow {event['state']}, translated ({event['nat']})")
    lines.append(f"rule {event['rule']}: {event['verdict']}")
    for number, line in enumerate(lines):
        write(f"       {'' if number else 'guard':<5}   {line}", GOOD)
