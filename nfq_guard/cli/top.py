# SPDX-License-Identifier: MIT
"""`nfq-guard top`: a live view of the running daemon."""

import argparse
import locale
import os
import sys
import time
from typing import Annotated, Any, Final, TypedDict, final

from nfq_guard.cli.answers import FLOWS, checked
from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_format, whole_number
from nfq_guard.cli.terminal import write_json
from nfq_guard.cli.top_view import View
from nfq_guard.errors import EXIT_OK, NfqGuardError, UsageError
from nfq_guard.service.control.client import Client
from nfq_guard.service.status import Status, decode
from nfq_guard.service.worker.history import DumpedFlowRecord

_FLOWS: Final = 200


class UpdateRecord(TypedDict):
    """One update of `top`.

    Attributes:
        status: The daemon, as printed by `status`.
        flows: At most 200 flows, most recent first, as printed by `dump`.
    """

    status: Annotated[dict[str, Any], Status]
    flows: list[Annotated[dict[str, Any], DumpedFlowRecord]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between two updates (default: 1)",
    )
    parser.add_argument(
        "--count", type=whole_number(1), metavar="N", help="with --format json: end after N objects"
    )
    add_socket(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Show the view until the user quits; as JSON Lines, one object per update."""
    if not 0.1 <= args.interval <= 3600:
        raise UsageError(f"--interval: expected 0.1 to 3600 seconds, found {args.interval}")
    if args.format == "json":
        _print(args)
        return EXIT_OK
    if sys.stdin is None or not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise UsageError("top needs a terminal; use --format json, or `nfq-guard status`")
    if os.environ.get("TERM") in {None, "", "dumb"}:
        raise UsageError("top needs a terminal that can move its cursor; use --format json")
    _show(args)
    return EXIT_OK


def _print(args: argparse.Namespace) -> None:
    shown = 0
    with connected(args) as client:
        while args.count is None or shown < args.count:
            if shown:
                time.sleep(args.interval)
            status, flows = _query(client)
            record: UpdateRecord = {"status": status, "flows": flows}
            write_json(record)
            sys.stdout.flush()
            shown += 1


def _show(args: argparse.Namespace) -> None:
    # Some builds of Python have no curses; only this command needs it.
    try:
        import curses  # noqa: PLC0415 - see above

        from nfq_guard.cli.top_screen import Screen  # noqa: PLC0415 - imports curses
    except ImportError:
        raise UsageError("top needs curses, which this Python lacks; use --format json") from None
    feed = _Feed(args)
    feed.refresh()
    if feed.problem is not None:
        raise feed.problem
    try:
        Screen(feed.view, feed.refresh, args.interval).run()
    except curses.error as error:
        raise UsageError(f"top cannot use this terminal: {error}") from None


@final
class _Feed:
    """Updates a view, reconnecting to the daemon when necessary."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.view = View(unicode=locale.getpreferredencoding().upper() == "UTF-8")
        self.problem: NfqGuardError | None = None
        self._args = args
        self._client: Client | None = None

    def refresh(self) -> None:
        """Query the daemon; an error is shown in the view, and the next call tries again."""
        try:
            if self._client is None:
                self._client = connected(self._args)
            status, flows = _query(self._client)
            typed = decode(status)
            checked(flows, FLOWS)
        except NfqGuardError as error:
            self.problem = error
            self.view.problem = str(error)
            if self._client is not None:
                self._client.close()
                self._client = None
            return
        self.problem = None
        self.view.take(typed, flows, time.monotonic())


def _query(client: Client) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return client.request("status"), client.request("dump", flows=_FLOWS)
