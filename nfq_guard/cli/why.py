# SPDX-License-Identifier: MIT
"""`nfq-guard why`: explains the packets that the kernel's log names."""

import argparse
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import BinaryIO, Final, cast

from nfq_guard.cli.options import add_format
from nfq_guard.cli.recording import EVENTS, content, is_capture, opened
from nfq_guard.cli.terminal import columns, paint, write_json, write_line
from nfq_guard.errors import EXIT_OK, UnavailableError, UsageError
from nfq_guard.finding import Breach
from nfq_guard.kernlog.groups import Groups, LoggedRecord, notice_records
from nfq_guard.kernlog.lines import LogReader
from nfq_guard.kernlog.notices import Notice
from nfq_guard.names import counted, endpoint
from nfq_guard.replay.words import breach_gist
from nfq_guard.seqno import Seq
from nfq_guard.telemetry.palette import Style

_JOURNAL: Final = ("journalctl", "--dmesg", "--output=cat", "--no-pager", "--quiet")
_FLOWS_SHOWN: Final = 10
_WIDTH: Final = 100
# Verdicts whose records are apart by their text.
_APART: Final = ("not said", "dropped")
# The kernel's own limit of a prefix.
_TEXT_SHOWN: Final = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Explain the packets in the kernel's log: those that conntrack itself logged "
        "(net.netfilter.nf_conntrack_log_invalid), with their reason; those of LOG rules, such as "
        "[UFW BLOCK], with what their lines prove; and packets and lines that the kernel only "
        "counts, such as packets that it dropped because the conntrack table was full."
    )
    parser.add_argument(
        "log",
        metavar="FILE",
        nargs="?",
        help="a log: dmesg, syslog or journalctl, plain or compressed; - for standard input",
    )
    parser.add_argument(
        "--journal", action="store_true", help="read the kernel's log of this boot from the journal"
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the logged packets; as JSON Lines, one object a reason and flow."""
    if args.journal == (args.log is not None):
        raise UsageError("expected FILE, - or --journal")
    reader = LogReader()
    groups = Groups()
    with _journal() if args.journal else _file(args.log) as (stream, found):
        for packet in reader.read(stream):
            groups.add(packet)
    records = groups.records()
    noticed = notice_records(reader.notices)
    if args.journal and not reader.lines:
        raise UnavailableError(
            "--journal: no line of the kernel: there is no journal, or none that this user may read"
        )
    # Entries of the journal are JSON.
    if not (records or noticed or found in {"JSON", "a text"}):
        what = "events: use report, dump or whatif" if found == EVENTS else found
        raise UsageError(f"{args.log}: expected a log of the kernel, found {what}")
    if args.format == "json":
        for record in (*records, *noticed):
            write_json(record)
    else:
        for _, same in groupby(records, _case):
            _show(list(same))
        for notice, record in zip(reader.notices, noticed, strict=True):
            _show_notice(notice, record)
        if not (records or noticed):
            write_line(f"no packet in {counted(reader.lines, 'line')}")
    if reader.skipped:
        sys.stderr.write(
            f"nfq-guard: lines that are too long or have no whole packet: {reader.skipped}\n"
        )
    return EXIT_OK


@contextmanager
def _file(name: str) -> Iterator[tuple[BinaryIO, str]]:
    """A log, and what it contains by its beginning."""
    with opened(name) as stream:
        if is_capture(stream):
            raise UsageError(f"{name}: a capture: use replay or explain")
        yield stream, content(stream)


@contextmanager
def _journal() -> Iterator[tuple[BinaryIO, str]]:
    try:
        process = subprocess.Popen(_JOURNAL, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise UnavailableError(f"journalctl: cannot be started: {error.strerror}") from None
    with process:
        try:
            yield cast("BinaryIO", process.stdout), "JSON"
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UnavailableError(f"journalctl: exit status {process.returncode}")


def _case(record: LoggedRecord) -> tuple[object, ...]:
    return (
        record["source"],
        record["verdict"],
        record["reason"],
        record["ignored"],
        record["tcp_flags"],
        record["meaning"],
        record["text"] if record["source"] == "rule" or record["verdict"] in _APART else "",
    )


def _show(records: list[LoggedRecord]) -> None:
    first = records[0]
    packets = sum(record["packets"] for record in records)
    ignored = first["ignored"]
    name = first["reason"] or (f"ignored {ignored}" if ignored else "no reason in the line")
    if first["verdict"] == "dropped":
        name = "refused by a helper"
    if first["proto"] is None and not first["text"]:
        name = "other lines"
    elif first["source"] == "rule":
        name = f"logged by the rule {_quoted(first['text'])}"
        if first["tcp_flags"] is not None:
            name += f", flags {first['tcp_flags'] or '-'}"
    verdict = "" if first["verdict"] == "not said" else f", {_verdict(first)}"
    write_line(paint(f"{name}{verdict}: {counted(packets, 'packet')}", Style.BOLD))
    if first["source"] == "conntrack":
        _paragraph("  Conntrack: ", _quoted(first["text"]))
    _paragraph("  Meaning: ", first["meaning"])
    _paragraph("  Next: ", first["next"])
    for record in records[:_FLOWS_SHOWN]:
        write_line(f"  {_flow(record)}")
    rest = records[_FLOWS_SHOWN:]
    if rest:
        more = sum(record["packets"] for record in rest)
        write_line(f"  {counted(more, 'packet')} of {counted(len(rest), 'more flow')}")
    write_line()


def _show_notice(notice: Notice, record: LoggedRecord) -> None:
    verdict = ", dropped" if notice.dropped else ""
    count = counted(record["packets"], notice.unit)
    write_line(paint(f"{notice.title}{verdict}: {count}", Style.BOLD))
    _paragraph("  Kernel: ", _quoted(record["text"]))
    _paragraph("  Meaning: ", notice.meaning)
    _paragraph("  Next: ", notice.next)
    write_line(f"  {_lines(record)}")
    write_line()


def _verdict(record: LoggedRecord) -> str:
    verdict = record["verdict"]
    return "INVALID" if verdict == "invalid" else verdict


def _flow(record: LoggedRecord) -> str:
    lines = _lines(record)
    if record["proto"] is None:
        return f"other flows: {counted(record['packets'], 'packet')}, {lines}"
    source = endpoint(record["src"], record["sport"])
    ends = f"{record['proto']} {source} > {endpoint(record['dst'], record['dport'])}"
    found = record["breach"]
    gist = ""
    if found is not None:
        breach = Breach(
            found["bound"], Seq(found["actual"]), Seq(found["limit"]), found["distance"]
        )
        gist = f", {breach_gist(breach)}"
    return f"{ends}: {counted(record['packets'], 'packet')}, {lines}{gist}"


def _lines(record: LoggedRecord) -> str:
    if record["last_line"] == record["first_line"]:
        return f"line {record['first_line']}"
    return f"lines {record['first_line']} to {record['last_line']}"


def _quoted(text: str) -> str:
    """A text of the log, made safe for a terminal."""
    return ascii(text.strip()[:_TEXT_SHOWN])


def _paragraph(head: str, text: str) -> None:
    for line in textwrap.wrap(
        text,
        min(columns() or _WIDTH, _WIDTH),
        initial_indent=head,
        subsequent_indent="    ",
        break_on_hyphens=False,
    ):
        write_line(line)
