# SPDX-License-Identifier: MIT
"""`nfq-guard replay`: lists the INVALID packets of a capture, and the reasons."""

import argparse
import gc
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from nfq_guard.capture.interfaces import InterfaceFilter
from nfq_guard.capture.reader import Capture, merged
from nfq_guard.capture.source import STDIN
from nfq_guard.capture.writer import PcapngWriter
from nfq_guard.cli import replay_run as replaying
from nfq_guard.cli.kernel_choice import warn
from nfq_guard.cli.options import add_format, is_same_file, keep_inputs, output_file
from nfq_guard.cli.progress import Progress
from nfq_guard.cli.replay_text import Table, capture_notes, comment, summary_lines
from nfq_guard.cli.terminal import columns, fitted, json_text, printable, wants_colour, write_json
from nfq_guard.errors import EXIT_OK, OutputError, UsageError
from nfq_guard.finding import Reason
from nfq_guard.outfile import replacing
from nfq_guard.replay.flow_list import flow_line, flow_record
from nfq_guard.replay.listing import Listing
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.selection import Selection, parse_flow
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.summary import Summary

if TYPE_CHECKING:
    from nfq_guard.cli.replay_page import ReplayPage

# Open files besides the captures.
_OTHER_FILES: Final = 64
_DESCRIPTION: Final = """\
Follow a capture with the rules of a chosen kernel's conntrack. For each packet that iptables
would have matched as INVALID, say why, with the numbers that prove it, and what the policy does.
Needs no privilege. Captures are pcap or pcapng, plain or in gzip, xz or zstd; several are merged
by time; - is standard input."""

_EPILOG: Final = """\
A capture that is cut or broken in the middle is replayed up to there, with a warning; the exit
status is still 0. It is 2 when nothing could be read. A capture on "any" has a packet that a host
forwards or translates more than once: copies of a TCP segment are recognised and not judged again;
packets of other protocols count each time."""


_Show = Callable[[Sequence[Outcome]], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "captures", metavar="CAPTURE", nargs="+", help="a capture file; - for standard input"
    )
    parser.add_argument(
        "--all", action="store_true", help="show every frame, not only INVALID packets"
    )
    parser.add_argument(
        "--only",
        metavar="REASON",
        action="append",
        default=[],
        choices=[reason.value for reason in Reason],
        help="show only this reason; may be repeated",
    )
    parser.add_argument(
        "--flow", metavar="A:P-B:P", help="show only this flow; IPv6 addresses in brackets"
    )
    parser.add_argument(
        "--interface",
        metavar="NAME|INDEX",
        help="judge only the frames of this interface: its name or index in a pcapng file, or its "
        "index in a Linux cooked capture (version 2)",
    )
    parser.add_argument(
        "--write",
        type=output_file,
        metavar="FILE",
        help="write the shown packets to FILE, pcapng with comments",
    )
    parser.add_argument(
        "--report",
        type=output_file,
        metavar="FILE",
        help="also write the INVALID packets as an HTML page, as report draws events",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--summary", action="store_true", help="show only the summary")
    only.add_argument(
        "--flows",
        action="store_true",
        help="list the TCP flows with their packets and final state, also those that outlived "
        "their entry; then the summary",
    )
    add_format(parser)
    replaying.add_decapsulate(parser)
    replaying.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Replay; exit status 0 if anything could be read."""
    _check(args)
    settings = replaying.settings_of(args, every=args.all, decapsulate=args.decapsulate)
    selection = Selection(
        reasons=frozenset(Reason(word) for word in args.only),
        flow=None if args.flow is None else parse_flow(args.flow),
    )
    replayer = Replayer(settings, replaying.policy_of(args))
    if args.flows:
        replayer.streams.listing = Listing()
    summary = Summary()
    with ExitStack() as stack:
        # A replay creates millions of objects without reference cycles; the search costs 5 %.
        gc.disable()
        stack.callback(gc.enable)
        captures: list[Capture] = []
        _allow_files(len(args.captures))
        for source, name in enumerate(args.captures):
            captures.append(Capture(name, source))
            stack.callback(captures[-1].close)
        totals = [capture.total or 0 for capture in captures]
        progress = Progress(sum(totals) if all(totals) else None)
        stack.callback(progress.clear)
        shows = _shows(args, [printable(capture.name) for capture in captures])
        if args.write:
            shows.append(_writer(str(args.write), captures, stack))

        page = _page(args, captures, shows)
        selected = 0

        def take(outcomes: Sequence[Outcome]) -> None:
            nonlocal selected
            for outcome in outcomes:
                summary.add(outcome)
            shown = [outcome for outcome in outcomes if selection.takes(outcome)]
            selected += len(shown)
            if shown:
                progress.clear()
                for show in shows:
                    show(shown)

        interface = None if args.interface is None else InterfaceFilter(args.interface, captures)
        for frames in merged(captures):
            take(replayer.replay(frames if interface is None else interface.keep(frames)))
            progress.update(replayer.frames, sum(capture.consumed for capture in captures))
        replayer.drops = sum(capture.drops for capture in captures)
        take(replayer.finish())
        progress.clear()
        if interface is not None and not interface.kept:
            raise UsageError(
                f"--interface: no frame of {args.interface!a}; there are frames of interface "
                f"{interface.seen() or 'none'}"
            )
        replaying.refuse_unknown_links(replayer, [capture.name for capture in captures])
        damage = [capture.damage for capture in captures if capture.damage is not None]
        _finish(args, summary, replayer, settings, progress.seconds, selected, damage)
        for text in damage:
            warn(text)
        if page is not None:
            name = ", ".join(printable(capture.name) for capture in captures)
            notes = [*map(printable, damage), *capture_notes(summary, replayer)]
            sys.stderr.write(f"nfq-guard: {page.write(name, settings, notes)}\n")
    return EXIT_OK


def _allow_files(captures: int) -> None:
    """Raise the soft limit of open files, as far as allowed, to have all captures open at once.

    Only then can they be merged by time; a ring of tcpdump may have thousands of files.
    """
    needed = captures + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check(args: argparse.Namespace) -> None:
    """Raise if the arguments contradict each other."""
    if args.flows and (args.all or args.only or args.flow is not None or args.write):
        raise UsageError("--flows lists whole flows: not with --all, --only, --flow or --write")
    if args.captures.count(STDIN) > 1:
        raise UsageError("CAPTURE: standard input can be read only once")
    if args.write is not None and args.write == args.report:
        raise UsageError(f"--report: {args.report} is the file of --write")
    for output in (args.write, args.report):
        if output is not None:
            keep_inputs(output, policy=[args.policy] if args.policy else [])


def _page(
    args: argparse.Namespace, captures: Sequence[Capture], shows: list[_Show]
) -> "ReplayPage | None":
    """The page of `--report`, which gets the selected outcomes too; None without one."""
    if args.report is None:
        return None
    # Imported here: a replay without a page does not load what draws it.
    from nfq_guard.cli.replay_page import ReplayPage  # noqa: PLC0415

    page = ReplayPage(args.report, captures, args.policy)
    shows.append(page.take)
    return page


def _shows(args: argparse.Namespace, files: Sequence[str]) -> list[_Show]:
    """The destination of the selected outcomes."""
    if args.summary or args.flows:
        return []
    if args.format == "json":
        # Imported here, as above.
        from nfq_guard.replay.frame_record import record  # noqa: PLC0415

        def show_json(outcomes: Sequence[Outcome]) -> None:
            lines = [json_text(record(outcome, files)) for outcome in outcomes]
            sys.stdout.write("\n".join(lines) + "\n")

        return [show_json]
    table = Table(
        files if len(files) > 1 else (), every=args.all, colour=wants_colour(), width=columns()
    )

    def show_text(outcomes: Sequence[Outcome]) -> None:
        sys.stdout.write(table.rows(outcomes))

    return [show_text]


def _writer(name: str, captures: Sequence[Capture], stack: ExitStack) -> _Show:
    path = Path(name)
    try:
        if any(is_same_file(path, capture.name) for capture in captures):
            raise UsageError(f"--write: {name} is an input file")
        # `outfile.output` would take an error of standard output for one of this file.
        output = replacing(path)
        file = output.__enter__()
    except OSError as error:
        raise UsageError(f"--write: {name}: cannot be written: {error.strerror}") from None

    writer = PcapngWriter(file)

    def write(outcomes: Sequence[Outcome]) -> None:
        try:
            for outcome in outcomes:
                writer.write(outcome.frame, comment(outcome))
        except OSError as error:
            raise OutputError(f"--write: {name}: cannot be written: {error.strerror}") from None

    def end(
        kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # A complete file gets its name; after an exception, an existing file stays.
        try:
            return output.__exit__(kind, error, trace)
        except OSError as failed:
            raise OutputError(f"--write: {name}: cannot be written: {failed.strerror}") from None

    stack.push(end)
    return write


def _finish(
    args: argparse.Namespace,
    summary: Summary,
    replayer: Replayer,
    settings: ReplaySettings,
    seconds: float,
    selected: int,
    damage: Sequence[str],
) -> None:
    if args.flows:
        _list_flows(args, replayer)
    if args.format == "text":
        lines = summary_lines(summary, replayer, settings, seconds, colour=wants_colour())
        gap = "" if args.summary else "\n"
        if summary.by_doubt and not summary.by_reason:
            gap += "No packet is INVALID beyond doubt.\n\n"
        elif not summary.by_reason:
            gap = "No packet is INVALID.\n\n"
        elif selected == 0:
            given = " and ".join(
                name for name in ("--only", "--flow") if getattr(args, name.removeprefix("--"))
            )
            gap = f"No INVALID packet is selected by {given}.\n\n"
        sys.stdout.write(fitted(gap + "\n".join(lines) + "\n"))
    elif args.summary:
        whole = summary.as_object(replayer, settings, seconds, [*map(printable, damage)])
        write_json(whole)
    sys.stdout.flush()


def _list_flows(args: argparse.Namespace, replayer: Replayer) -> None:
    listing = replayer.streams.listing
    assert listing is not None  # noqa: S101 - requested by `run`
    for stream in listing.streams:
        found = flow_record(stream, replayer.now)
        if args.format == "json":
            write_json(found)
        else:
            sys.stdout.write(fitted(flow_line(found) + "\n"))
    if listing.streams and args.format == "text":
        sys.stdout.write("\n")
    if listing.others:
        warn(f"{listing.others} more flows are not listed")
