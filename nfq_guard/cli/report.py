# SPDX-License-Identifier: MIT
"""`nfq-guard report`: recorded events as one HTML page."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from nfq_guard.cli.options import is_same_file, keep_inputs, output_file
from nfq_guard.cli.recording import is_capture, missing_end, opened
from nfq_guard.cli.terminal import printable
from nfq_guard.doctor.check import Check
from nfq_guard.errors import EXIT_OK, UsageError
from nfq_guard.names import counted
from nfq_guard.policyfile import load_compiled
from nfq_guard.report.html import jinja
from nfq_guard.report.page import write_page
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.reader import EventReader
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.result import result
from nfq_guard.whatif.trial import Trial

# The policies that are compared by default.
PRESETS: Final = ("preset:default", "preset:kube-proxy", "preset:strict")
_POLICIES_MAX: Final = 8
_FINDINGS_MAX: Final = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "events",
        metavar="EVENTS",
        help="events of the daemon, JSON Lines, journalctl -o json or the log of its container; "
        "- for standard input",
    )
    parser.add_argument(
        "-o", "--output", type=output_file, required=True, metavar="FILE", help="the page to write"
    )
    parser.add_argument("--title", help="title of the page (default: the name of EVENTS)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="FILE",
        help="show what this policy would have done; give it again for others, "
        f"{_POLICIES_MAX} at most; two are also compared (default: " + ", ".join(PRESETS) + ")",
    )
    parser.add_argument(
        "--doctor",
        metavar="FILE",
        help="show the findings of the host in FILE, the output of doctor --format json",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page, replacing an existing one only when complete."""
    jinja()
    if len(args.policy) > _POLICIES_MAX:
        raise UsageError(f"--policy: expected at most {_POLICIES_MAX}, found {len(args.policy)}")
    if args.events != "-" and is_same_file(args.output, args.events):
        raise UsageError(f"{args.output}: is the input file")
    keep_inputs(args.output, policy=args.policy, doctor=[args.doctor] if args.doctor else [])
    name = "standard input" if args.events == "-" else Path(args.events).name
    trial = Trial([load_compiled(reference) for reference in args.policy or PRESETS])
    findings = [] if args.doctor is None else list(_findings(args.doctor))
    if args.doctor is not None and not findings:
        raise UsageError(f"{args.doctor}: expected the output of doctor --format json")
    reader = EventReader()
    with opened(args.events) as stream:
        if is_capture(stream):
            raise UsageError(f"{args.events}: a capture: use replay or whatif")
        summary = _summarise(reader, stream, trial)
        missing = missing_end(stream)
    if not summary.counts.packets and reader.lines and not reader.unrecorded.texts():
        raise UsageError(f"{args.events}: expected packet_judged events, found none")
    trial.end()
    gaps = [text for text in (reader.skipped_text(), *reader.unrecorded.texts()) if text]
    for gap in gaps:
        sys.stderr.write(f"nfq-guard: {printable(args.events)}: {gap}\n")
    write_page(
        args.output,
        summary,
        title=printable(args.title or name),
        trial=result(trial, printable(args.events), "events", reader.unrecorded),
        gaps=[missing, *gaps] if missing else gaps,
        findings=findings,
    )
    name = printable(str(args.output))
    packets = counted(summary.counts.packets, "packet")
    flows = counted(len(summary.flows), "flow") + (" and more" if summary.others else "")
    sys.stdout.write(f"{name}: {packets}, {flows}\n")
    return EXIT_OK


def _summarise(reader: EventReader, stream: BinaryIO, trial: Trial) -> Summary:
    summary = Summary()
    for read in reader.read(stream):
        add_event(summary, read)
        for packets in recorded(read):
            trial.take(packets)
    return summary


def _findings(name: str) -> Iterator[dict[str, Any]]:
    """The lines of `doctor --format json`.

    Raises:
        UsageError: They cannot be read, or are not the doctor's.
    """
    try:
        with Path(name).open("rb") as file:
            for number, line in enumerate(file):
                if number >= _FINDINGS_MAX:
                    break
                check = msgspec.json.decode(line, type=Check)
                yield msgspec.to_builtins(check, str_keys=True)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError:
        raise UsageError(f"{name}: expected the output of doctor --format json") from None
