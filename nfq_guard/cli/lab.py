# SPDX-License-Identifier: MIT
"""`nfq-guard lab`: the classic resets, reproduced and measured in network namespaces."""

import argparse
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, TypedDict

from nfq_guard.cli.options import add_color, add_debug, add_format
from nfq_guard.cli.terminal import paint, write_json, write_line
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, UsageError
from nfq_guard.flow import IPV4, IPV6
from nfq_guard.lab import demo, matrix, strays
from nfq_guard.lab.addresses import Family
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.trial import Keep
from nfq_guard.telemetry.palette import Style

_STYLES: Final = {
    Outcome.SURVIVED: Style.GREEN,
    Outcome.LEAKED: Style.MAGENTA,
    Outcome.STALLED: Style.YELLOW,
    Outcome.BLOCKED: Style.YELLOW,
    Outcome.RESET: Style.RED,
}
_LEGEND: Final = {
    Outcome.SURVIVED: "the connection continues, and no packet escaped translation",
    Outcome.LEAKED: "the connection continues, but an address that translation hides was exposed",
    Outcome.BLOCKED: "the connection hangs because the mitigation dropped its packets",
    Outcome.STALLED: "the connection hangs although the mitigation dropped nothing",
    Outcome.RESET: "the connection was reset",
}
_FAMILIES: Final[dict[str, tuple[Family, ...]]] = {
    "4": (IPV4,),
    "6": (IPV6,),
    "both": (IPV4, IPV6),
}
_MITIGATIONS: Final = [mitigation.value for mitigation in Mitigation]
_TONES: Final = {
    demo.HEADING: (Style.BOLD,),
    demo.PLAIN: (),
    demo.BAD: (Style.RED,),
    demo.GOOD: (Style.GREEN, Style.BOLD),
}
_ACTIONS: Final = {
    "list": "name the scenarios",
    "run": "run one scenario",
    "matrix": "run every scenario with every mitigation",
    "demo": "show one connection that dies without the guard and survives with it",
    "clean": "remove namespaces and files that killed runs left behind",
}


class ScenarioRecord(TypedDict):
    """One scenario.

    Attributes:
        scenario: Its name.
        summary: Its story in one sentence.
    """

    scenario: str
    summary: str


class CleanedRecord(TypedDict):
    """The result of `lab clean`.

    Attributes:
        removed: Each namespace and directory that was removed, as `namespace NAME` or
            `directory PATH`.
    """

    removed: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `list`, `run`, `matrix`, `demo` and `clean`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing, one, many, showing, cleaning = (
        actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        for name, summary in _ACTIONS.items()
    )
    for action in (listing, one, many, showing, cleaning):
        add_debug(action)
        add_color(action)
    one.add_argument(
        "scenario", choices=list(SCENARIOS), metavar="SCENARIO", help=_one_of(SCENARIOS)
    )
    one.add_argument(
        "--mitigation",
        choices=_MITIGATIONS,
        default=Mitigation.NONE.value,
        metavar="M",
        help=f"{_one_of(_MITIGATIONS)} (default: none)",
    )
    for option, choices, metavar in (
        ("--scenario", list(SCENARIOS), "NAME"),
        ("--mitigation", _MITIGATIONS, "M"),
    ):
        many.add_argument(
            option,
            nargs="+",
            choices=choices,
            default=choices,
            metavar=metavar,
            help=f"one or more of {', '.join(choices)} (default: all)",
        )
    for action, families, values in (
        (one, ("4", "6"), "IPv4 or IPv6"),
        (many, tuple(_FAMILIES), "IPv4, IPv6 or both"),
    ):
        action.add_argument(
            "--family", choices=families, default="4", help=f"{values} (default: 4)"
        )
    for action in (one, many):
        action.add_argument(
            "--pcap", type=Path, metavar="DIR", help="write a capture of each link to DIR"
        )
        action.add_argument(
            "--events", type=Path, metavar="DIR", help="write the guard's log to DIR"
        )
    for action in (listing, one, many, cleaning):
        add_format(action)


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; exit status 1 if an outcome is not the expected one."""
    match args.action:
        case "list":
            return _list(as_json=args.format == "json")
        case "clean":
            return _clean(as_json=args.format == "json")
        case _:
            with _sigterm_as_interrupt():
                try:
                    return _measure(args)
                except KeyboardInterrupt:
                    sys.stderr.write("nfq-guard: interrupted; all namespaces are removed\n")
                    raise


def _measure(args: argparse.Namespace) -> int:
    strays.layers()
    matrix.check_requirements()  # before the head of the table
    if args.action == "demo":
        return demo.run(lambda text, tone: write_line(paint(text, *_TONES[tone])))
    as_json = args.format == "json"
    keep = Keep(pcap=_directory("--pcap", args.pcap), events=_directory("--events", args.events))
    families = _FAMILIES[args.family]
    if args.action == "run":
        task = matrix.Task(SCENARIOS[args.scenario], Mitigation(args.mitigation), *families)
        results = matrix.run_all([task], keep)
        return show(results, write_record if as_json else _write_one)
    tasks = [
        matrix.Task(SCENARIOS[scenario], Mitigation(mitigation), family)
        for scenario in args.scenario
        for family in families
        for mitigation in args.mitigation
    ]
    results = matrix.run_all(tasks, keep)
    if as_json:
        return show(results, write_record)
    mitigations = [Mitigation(mitigation) for mitigation in args.mitigation]
    return show_table(results, mitigations, families)


def _directory(option: str, path: Path | None) -> Path | None:
    """Create the directory `path`, so that an unusable one is reported before any run."""
    try:
        if path:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{option}: {path} cannot be created as a directory: {error.strerror}"
        ) from None
    return path


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first SIGINT or SIGTERM; ignore them during the cleanup."""

    def once(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, once)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _list(*, as_json: bool) -> int:
    width = max(map(len, SCENARIOS))
    for name, scenario in SCENARIOS.items():
        if as_json:
            record: ScenarioRecord = {"scenario": name, "summary": scenario.summary}
            write_json(record)
        else:
            write_line(f"{paint(name.ljust(width), Style.BOLD)}  {scenario.summary}")
    return EXIT_OK


def _clean(*, as_json: bool) -> int:
    matrix.check_requirements()
    removed = matrix.clean()
    if as_json:
        record: CleanedRecord = {"removed": removed}
        write_json(record)
        return EXIT_OK
    for name in removed:
        write_line(f"removed {name}")
    if not removed:
        write_line("nothing to remove")
    return EXIT_OK


def show(results: Generator[Result, None, None], write: Callable[[Result], None]) -> int:
    """Pass each result to `write`; exit status 1 if any is not as expected."""
    all_expected = True
    with closing(results):
        for result in results:
            write(result)
            all_expected = all_expected and result.as_expected
    return EXIT_OK if all_expected else EXIT_NOT_FINE


def write_record(result: Result) -> None:
    """Write a result as one line of JSON."""
    write_json(result.record())


def _write_one(result: Result) -> None:
    rows = {
        "scenario": result.scenario,
        "family": f"IPv{result.family}",
        "mitigation": result.mitigation.value,
        "outcome": paint(result.outcome.value, _STYLES[result.outcome]),
        "expected": f"{result.expected.value}: {result.why}",
        "invalid": f"{result.invalid} by the kernel's count",
        "queued": str(result.queued),
        "dropped": str(result.dropped),
        "would drop": str(result.would_drop),
        "RST seen": "\n            ".join(result.rst) or "none",
        "leaked": "\n            ".join(result.leaks) or "nothing",
        "seconds": f"{result.seconds:.2f}",
    }
    for name, value in rows.items():
        write_line(f"{name:<11} {value}")
    if not result.as_expected:
        write_line(paint("not as expected", Style.RED, Style.BOLD))


def show_table(
    results: Generator[Result, None, None],
    mitigations: Sequence[Mitigation],
    families: Sequence[Family] = (IPV4,),
) -> int:
    """Write one row a scenario and family, each once its last run has ended, then a legend.

    With IPv4 alone there is no column of the family.
    """
    heads = [_split(mitigation.value) for mitigation in mitigations]
    widths = [max(map(len, (*head, Outcome.SURVIVED.value))) for head in heads]
    first = max(map(len, SCENARIOS))

    def start(scenario: str, family: str) -> tuple[str, ...]:
        name = scenario.ljust(first)
        return (name,) if tuple(families) == (IPV4,) else (name, family.ljust(3))

    for line in range(2):
        names = [head[line].ljust(width) for head, width in zip(heads, widths, strict=True)]
        titles = ("scenario", "IPv") if line else ("", "")
        write_line(paint("  ".join((*start(*titles), *names)).rstrip(), Style.BOLD))
    row: list[Result] = []
    completed: list[Result] = []

    def add(result: Result) -> None:
        row.append(result)
        if len(row) == len(mitigations):
            cells = [_cell(each, width) for each, width in zip(row, widths, strict=True)]
            titles = start(result.scenario, str(result.family))
            write_line("  ".join((*titles, *cells)).rstrip())
            completed.extend(row)
            row.clear()

    status = show(results, add)
    write_line()
    for outcome, meaning in _LEGEND.items():
        if any(outcome is result.outcome for result in completed):
            write_line(f"{paint(outcome.value.ljust(9), _STYLES[outcome])} {meaning}")
    for result in completed:
        if not result.as_expected:
            text = (
                f"! {result.scenario} with {result.mitigation}, IPv{result.family}: "
                f"expected {result.expected}, found {result.outcome}: {result.why}"
            )
            write_line(paint(text, Style.RED, Style.BOLD))
    return status


def _split(name: str) -> tuple[str, str]:
    """A mitigation's name on two lines, which keeps the table narrow."""
    head, dash, tail = name.partition("-")
    return (head + dash, tail) if dash else ("", name)


def _cell(result: Result, width: int) -> str:
    mark = "" if result.as_expected else "!"
    return paint((result.outcome.value + mark).ljust(width), _STYLES[result.outcome])
