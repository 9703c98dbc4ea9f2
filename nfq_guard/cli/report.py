# SPDX-License-Identifier: MIT
"""`nfq-guard report`: recorded events as one HTML page."""

import argparse
import sys
from pathlib import Path

from nfq_guard.cli.recording import is_capture, opened
from nfq_guard.cli.terminal import printable
from nfq_guard.errors import EXIT_OK, UsageError
from nfq_guard.policyfile import load_compiled
from nfq_guard.report.page import render
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.reader import EventReader
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.result import result
from nfq_guard.whatif.trial import Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "events",
        metavar="EVENTS",
        help="events of the daemon, JSON Lines or journalctl -o json; - for standard input",
    )
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
    if args.output.exists() and args.events != "-" and args.output.samefile(args.events):
        raise UsageError(f"{args.output}: is the input file")
    name = "standard input" if args.events == "-" else Path(args.events).name
    title = printable(args.title or name)
    trial = Trial([load_compiled(reference) for reference in args.policy]) if args.policy else None
    summary = Summary()
    reader = EventReader()
    with opened(args.events) as stream:
        if is_capture(stream):
            raise UsageError(f"{args.events}: a capture: use replay or whatif")
        for read in reader.read(stream):
            add_event(summary, read)
            if trial is not None:
                for packets in recorded(read):
                    trial.take(packets)
    if not summary.packets and reader.lines:
        raise UsageError(f"{args.events}: expected packet_judged events, found none")
    found = None
    if trial is not None:
        trial.end()
        found = result(trial, printable(args.events), "events", reader.unrecorded)
    gaps = [text for text in (reader.skipped_text(), *reader.unrecorded.texts()) if text]
    page = render(summary, title=title, skipped="; ".join(gaps), trial=found)
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
