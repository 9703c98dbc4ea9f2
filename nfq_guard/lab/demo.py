# SPDX-License-Identifier: MIT
"""The story for somebody who meets the guard for the first time, measured while it is told."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK
from nfq_guard.lab.matrix import Task, run_all
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.strays import PAYLOAD as STRAY_PAYLOAD
from nfq_guard.lab.trial import Keep
from nfq_guard.lab.wiretap import Address, Seen

_SCENARIO: Final = "kube-proxy-dnat"
_SHOWN_SEGMENTS: Final = 6
_LINKS: Final = {"inner": "pod side", "outer": "client side"}
_NAMES: Final = {"192.0.2.2": "client", "10.96.0.10": "service", "10.244.0.2": "pod"}

# How a line is meant; the caller knows how that looks.
HEADING: Final = "heading"
PLAIN: Final = "plain"
BAD: Final = "bad"
GOOD: Final = "good"

Tell = Callable[[str, str], None]

_PROLOGUE: Final = """
  client 192.0.2.2  --  node  --  pod 10.244.0.2:8080

  The client talks to the service 10.96.0.10:80, which the node translates to the pod.
  Requests are answered. Then one segment of the pod lies far beyond the client's window,
  and the client sends its next request.
"""


def run(tell: Tell) -> int:
    """Tell it line by line to `tell`, text and meaning; 0 if both halves were measured so."""
    tell("One stray segment and a healthy connection: a Kubernetes service, in namespaces", HEADING)
    for line in _PROLOGUE.splitlines():
        tell(line, PLAIN)
    tasks = [Task(SCENARIOS[_SCENARIO], each) for each in (Mitigation.NONE, Mitigation.GUARD)]
    outcomes: list[Outcome] = []
    with closing(run_all(tasks, Keep())) as results:
        for result in results:
            outcomes.append(result.outcome)
            tell("", PLAIN)
            if result.mitigation is Mitigation.NONE:
                _without(result, tell)
            else:
                _with(result, tell)
    return EXIT_OK if outcomes == [Outcome.RESET, Outcome.SURVIVED] else EXIT_NOT_FINE


def _without(result: Result, tell: Tell) -> None:
    tell("Without the guard", HEADING)
    _wire(result.wire, tell)
    if result.outcome is Outcome.RESET:
        tell(f"  Packets that the kernel called INVALID: {result.invalid}.", PLAIN)
        tell("  The client's next request: connection reset by peer.", BAD)
    else:
        tell(f"  Expected a reset, found {result.outcome}.", BAD)


def _with(result: Result, tell: Tell) -> None:
    tell("With the guard: nfq-guard run --mode enforce", HEADING)
    _wire(result.wire[:1], tell)
    for event in result.events:
        _event(event, tell)
    _wire(result.wire[1:], tell, begin=result.wire[:1])
    if result.outcome is Outcome.SURVIVED:
        seen = f"RST seen: {', '.join(result.rst)}" if result.rst else "No RST anywhere"
        tell(f"  {seen}; the client's next request: answered.", GOOD)
    else:
        tell(f"  Expected it to survive, found {result.outcome}.", BAD)


def _wire(segments: Sequence[Seen], tell: Tell, begin: Sequence[Seen] = ()) -> None:
    """What passed on each link, up to a handful; times count from the first of `begin`."""
    start_ns = next((one.time_ns for one in (*begin, *segments)), 0)
    for segment in segments[:_SHOWN_SEGMENTS]:
        remark, meaning = _remark(segment)
        kind = "RST " if segment.is_rst else "data" if segment.payload else "ACK "
        ends = f"{_name(segment.src)} > {_name(segment.dst)}"
        tell(
            f"  {(segment.time_ns - start_ns) / 1e6:7.2f} ms  {_LINKS[segment.link]:<11}  "
            f"{ends:<19}  {kind} seq {segment.seq:<10}  {remark}".rstrip(),
            meaning,
        )


def _name(end: Address) -> str:
    return _NAMES.get(end[0], end[0])


def _remark(segment: Seen) -> tuple[str, str]:
    """What a newcomer should notice about a segment, and how it is meant."""
    source = _name(segment.src)
    if segment.is_rst:
        if source != "client":
            return "no such connection any more", BAD
        if segment.link == "outer":
            return "the client talks to no pod", BAD
        return "and kills the pod's connection", BAD
    if segment.link == "outer" and source == "pod":
        return "INVALID, so not translated", BAD
    if segment.payload == STRAY_PAYLOAD:
        return "the stray: INVALID", BAD
    if segment.payload and segment.link == "outer":
        return ("the next request" if source == "client" else "its answer"), PLAIN
    return "", PLAIN


def _event(event: Mapping[str, Any], tell: Tell) -> None:
    """What the guard said of a packet: why it is INVALID, with the numbers, and what it did."""
    breach = event["breach"] or {}
    source = event["evidence"]
    source = "the kernel's own window of this flow (bpf)" if source == "bpf" else source
    lines = [f"{event['reason']}, by {source}"]
    if breach:
        lines.append(
            f"seq {breach['actual']}, window ends at {breach['limit']}: {breach['distance']:,} "
            "octets past it"
        )
    lines.append(f"flow {event['state']}, translated ({event['nat']})")
    lines.append(f"rule {event['rule']}: {event['verdict']}")
    for number, line in enumerate(lines):
        tell(f"       {'' if number else 'guard':<5}   {line}", GOOD)
