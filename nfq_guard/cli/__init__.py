# SPDX-License-Identifier: MIT
"""The command `nfq-guard`: one module a command, loaded when it is called."""

import argparse
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Final, Never, Protocol, TextIO, cast

from nfq_guard import __version__
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_USAGE, NfqGuardError


class _CommandModule(Protocol):
    """What a module of this package offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit status."""


# Each command with the line that `nfq-guard --help` shows. Its module in this package is imported
# only when it is called, so that the daemon loads nothing of the others.
COMMANDS: Final = {
    "run": "judge the packets of a queue until told to stop",
    "check": "test a policy or configuration file, all mistakes at once",
    "whatif": "show what one or two policies would have done to recorded packets",
    "replay": "say which packets of a capture are INVALID, and why",
    "explain": "explain one packet of a capture",
    "rules": "show, install, verify or remove the guard's rules in the packet filter",
    "status": "show what the running daemon does",
    "top": "watch the running daemon live",
    "reload": "have the running daemon read its policy again",
    "mode": "switch the running daemon between dry-run and enforce",
    "dump": "print the flow history of the running daemon",
    "doctor": "look for what keeps this host from telling INVALID packets apart",
    "lab": "reproduce the classic resets in network namespaces",
    "report": "make an HTML report of recorded events",
}


# The command that serves, and takes signals.
_DAEMON: Final = "run"
# What a disk or a device says that cannot take our output; anything else is a bug of ours.
_OUTPUT_FAILS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# 128 and the number of the signal, as shells have it.
_EXIT_INTERRUPTED: Final = 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error is said."""

    def error(self, message: str) -> Never:
        """Say it, name the help that tells more, and end with `EXIT_USAGE`."""
        self.exit(EXIT_USAGE, f"nfq-guard: {message} (see {self.prog} --help)\n")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nfq-guard",
        description="Judge conntrack's INVALID packets by the kernel's own TCP window.",
    )
    parser.add_argument("--version", action="version", version=f"nfq-guard {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if name == chosen:
            _module(name).add_arguments(sub)
    return parser


def _module(command: str) -> _CommandModule:
    return cast("_CommandModule", importlib.import_module(f"nfq_guard.cli.{command}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, one of those in `errors`."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    if chosen == _DAEMON:
        _ignore_what_comes_early()
    try:
        return _main(words, chosen)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _main(words: list[str], chosen: str | None) -> int:
    _hold_standard_streams()
    args = _parser(chosen if chosen in COMMANDS else None).parse_args(words)
    try:
        status = _module(args.command).run(args)
        # Here, for the interpreter would only complain about what fails at its end.
        sys.stdout.flush()
    except NfqGuardError as error:
        if args.debug:
            raise
        sys.stderr.write("".join(f"nfq-guard: {line}\n" for line in str(error).splitlines()))
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        _forget_output()
        return EXIT_NOT_FINE
    except OSError as error:
        if args.debug or error.errno not in _OUTPUT_FAILS:
            raise
        _forget_output()
        sys.stderr.write(f"nfq-guard: the output cannot be written: {error.strerror}\n")
        return EXIT_NOT_FINE
    return status


def _ignore_what_comes_early() -> None:
    """A reload that is asked for before the daemon has read anything must not end it."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def _hold_standard_streams() -> None:
    """Open /dev/null where one is closed, or a socket of ours would get its number, and its output.

    The interpreter has no `sys.stdout` then.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so this one
            os.set_inheritable(number, True)  # noqa: FBT003 - its only spelling
    sys.stdout = sys.stdout or _into_nothing()
    sys.stderr = sys.stderr or _into_nothing()


def _into_nothing() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _forget_output() -> None:
    """Keep the interpreter from trying once more, and complaining, when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
