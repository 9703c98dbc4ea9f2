# SPDX-License-Identifier: MIT
"""`nfq-guard report`: recorded events as one HTML page."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from nfq_guard.capture import pcap, pcapng
from nfq_guard.cli.terminal import printable
from nfq_guard.cli.whatif import run_events
from nfq_guard.errors import EXIT_OK, UsageError
from nfq_guard.policyfile import load_compiled
from nfq_guard.report.page import render
from nfq_guard.report.summary import summarise
from nfq_guard.whatif.result import result
from nfq_guard.whatif.trial import Trial

# No event has a tenth of it; a longer line is none, and is not kept in memory.
_LINE_MAX: Final = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("events", metavar="EVENTS", help="JSON Lines of the daemon; - for stdin")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the page to write"
    )
    parser.add_argument("--title", help="title of the page (default: the name of EVENTS)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="FILE",
        help="also show what this policy would have done; a second one is compared with it",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page, replacing an existing one only when complete."""
    if len(args.policy) > 2:
        raise UsageError("--policy: expected one or two policies")
    if args.policy and args.events == "-":
        raise UsageError("--policy: the events are read twice, so they must be a file")
    if args.output.exists() and args.events != "-" and args.output.samefile(args.events):
        raise UsageError(f"{args.output}: is the input file")
    name = "standard input" if args.events == "-" else Path(args.events).name
    title = printable(args.title or name)
    try:
        with _opened(args.events) as stream:
            summary = summarise(_events(stream))
    except OSError as error:
        raise UsageError(f"{args.events}: cannot be read: {error.strerror}") from None
    if summary.packets == 0 and summary.skipped:
        if args.events != "-" and _is_capture(args.events):
            raise UsageError(f"{args.events}: a capture: use replay or whatif")
        raise UsageError(f"{args.events}: no packet_judged event in {summary.skipped} lines")
    page = render(summary, title=title, trial=_whatif(args))
    try:
        _write(args.output, page)
    except OSError as error:
        raise UsageError(f"{args.output}: cannot be written: {error.strerror}") from None
    sys.stdout.write(f"{args.output}: {summary.packets} packets, {len(summary.flows)} flows\n")
    return EXIT_OK


def _write(path: Path, page: str) -> None:
    if path.exists() and not path.is_file():
        # A pipe or a device cannot be replaced.
        path.write_text(page, encoding="utf-8")
        return
    path = path.resolve()  # replaces the target of a link, not the link
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _is_capture(name: str) -> bool:
    with Path(name).open("rb") as file:
        magic = file.read(4)
    return magic in pcap.MAGICS or magic == pcapng.MAGIC


def _opened(name: str) -> BinaryIO:
    return sys.stdin.buffer if name == "-" else Path(name).open("rb")


def _events(stream: BinaryIO) -> Iterator[Mapping[str, Any] | None]:
    """Each line as an event; None for one that is no JSON object or too long."""
    while line := stream.readline(_LINE_MAX):
        if not line.endswith(b"\n") and len(line) == _LINE_MAX:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_LINE_MAX)
            yield None
            continue
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        yield event if isinstance(event, dict) else None


def _whatif(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """The result of `nfq-guard whatif` for the same events."""
    if not args.policy:
        return None
    trial = Trial([load_compiled(reference) for reference in args.policy])
    run_events(args.events, trial)
    trial.end()
    return result(trial, printable(args.events), "events")
