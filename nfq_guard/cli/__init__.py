# SPDX-License-Identifier: MIT
"""The command `nfq-guard`: one module for each subcommand, imported on demand."""

import argparse
import errno
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Final, Protocol, TextIO, cast

from nfq_guard import __version__
from nfq_guard.cli import escaping
from nfq_guard.cli.options import add_color, add_debug
from nfq_guard.cli.parser import Parser
from nfq_guard.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOT_FINE,
    EXIT_USAGE,
    NfqGuardError,
    shortage_in,
)


class _CommandModule(Protocol):
    """The interface of a subcommand's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; returns the exit status."""


# Each command with its line in `nfq-guard --help`. A command's module is imported only when it
# runs, so the daemon does not load the others.
COMMANDS: Final = {
    "run": "judge the packets of a queue until stopped",
    "check": "check a policy or configuration file and report every mistake",
    "whatif": "show what one or two policies would have done to recorded packets",
    "replay": "list the packets of a capture that are INVALID, and why",
    "explain": "explain one packet of a capture",
    "why": "explain the INVALID packets in the kernel's log, and what to do next",
    "rules": "show, install, verify or remove the guard's packet filter rules",
    "prepare": "as root, pin the BPF program or turn on the kernel's log for a daemon that may not",
    "status": "show the state of the running daemon",
    "top": "watch the running daemon live",
    "reload": "make the running daemon reload its policy",
    "mode": "switch the running daemon between dry-run and enforce",
    "dump": "print the flow history of the running daemon",
    "doctor": "diagnose the host: kernel, sysctls, rules, queues, offloads",
    "lab": "reproduce the classic connection resets in network namespaces",
    "report": "make an HTML report of recorded events",
}


# The command that runs as a daemon and handles signals.
DAEMON: Final = "run"
# Errors of the device that receives the output; any other OSError is a bug.
_OUTPUT_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def parser_of(commands: Iterable[str] = (), *, alone: bool = False) -> Parser:
    """The parser of the command line, with the arguments of these commands.

    With `alone` it lacks the other commands, whose parsers take as long as all the rest of it.
    """
    parser = Parser(
        prog="nfq-guard",
        description="Judge conntrack's INVALID packets by the kernel's own TCP window.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"nfq-guard {__version__}")
    add_debug(parser)
    add_color(parser)
    adding = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if alone and name not in commands:
            continue
        sub = adding.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if name in commands:
            add_debug(sub)
            add_color(sub)
            _module(name).add_arguments(sub)
    return parser


def command_in(words: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the value of `--color`."""
    before = ["", *words]
    return next(
        (
            word
            for previous, word in zip(before, words, strict=False)
            if not word.startswith("-") and previous != "--color"
        ),
        None,
    )


def _module(command: str) -> _CommandModule:
    return cast("_CommandModule", importlib.import_module(f"nfq_guard.cli.{command}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, one of those in `errors`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    chosen = command_in(words)
    _expect_early_signals(daemon=chosen == DAEMON)
    try:
        return _main(words, chosen)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (OSError, MemoryError, RuntimeError) as error:
        short = shortage_in(error)
        if not short or "--debug" in words:
            raise
        sys.stderr.write(f"nfq-guard: {short}; --debug shows where\n")
        return EXIT_NOT_FINE


def _main(words: list[str], chosen: str | None) -> int:
    _open_standard_streams()
    # The help, and an unknown command's error, name all commands.
    parser = parser_of(
        [] if chosen is None else [chosen], alone=chosen in COMMANDS and words[0] == chosen
    )
    if not words:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        args = parser.parse_args(words)
    except SystemExit as end:
        # Help or the version may have been written; its output can fail as any other can.
        status = int(end.code or 0)
        if _flushed(status) == status:
            raise
        return EXIT_NOT_FINE
    except OSError as error:
        return _unwritable(error)
    if "color" in args:
        # Imported here, because most commands write no colours.
        from nfq_guard.telemetry.palette import choose_colour  # noqa: PLC0415

        choose_colour(args.color)
    module = _module(args.command)
    if not gc.isenabled():
        # All is loaded, see `entry`, and is kept out of the search for garbage.
        gc.freeze()
        gc.enable()
    try:
        status = module.run(args)
        # A failure here is handled below; at interpreter exit it would only be printed.
        sys.stdout.flush()
    except NfqGuardError as error:
        if "debug" in args:
            traceback.print_exc()
        else:
            # Imported here, because only errors need it.
            from nfq_guard.cli.terminal import complain  # noqa: PLC0415

            complain(error)
        return error.exit_status
    except BrokenPipeError as error:
        return _unwritable(error)
    except OSError as error:
        if "debug" in args or error.errno not in _OUTPUT_ERRORS:
            raise
        return _unwritable(error)
    return status


def _flushed(status: int) -> int:
    """The status, or the status of an output error if standard output cannot be flushed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritable(error)
    return status


def _unwritable(error: OSError) -> int:
    _discard_output()
    # The reader of the output, such as `head`, may have exited.
    if not isinstance(error, BrokenPipeError):
        sys.stderr.write(f"nfq-guard: cannot write the output: {error.strerror}\n")
    return EXIT_NOT_FINE


def _expect_early_signals(*, daemon: bool) -> None:
    """Let no early reload signal end the daemon, and let SIGTERM end process 1.

    A log rotation may signal during the imports. The kernel discards a signal to process 1, as a
    container's daemon is, without a handler: it would run until its SIGKILL and leave its rules.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if daemon:
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, _frame: FrameType | None) -> None:
    """End as the signal ends any other process."""
    os._exit(128 + number)


def _open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream.

    Otherwise a file that is opened later would get the stream's number and receive its output.
    Python sets `sys.stdout` to None if standard output is closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is `number`
            os.set_inheritable(number, True)  # noqa: FBT003 - the parameter has no name
    sys.stdout = sys.stdout or _null_output()
    sys.stderr = sys.stderr or _null_output()
    escaping.install()


def _null_output() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _discard_output() -> None:
    """Keep the interpreter from flushing standard output again, and reporting it, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
