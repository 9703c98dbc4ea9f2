# SPDX-License-Identifier: MIT
"""`nfq-guard prepare`: the part of the daemon's start that requires root."""

import argparse
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from nfq_guard.cli.options import add_config, add_last_good, add_result
from nfq_guard.cli.rules import removed
from nfq_guard.cli.terminal import complain
from nfq_guard.errors import (
    EXIT_NOT_FINE,
    EXIT_OK,
    ConfigError,
    NfqGuardError,
    OutputError,
    UsageError,
)
from nfq_guard.flows import log_settings, pins
from nfq_guard.service import passed_sockets, proc_files
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.last_good import load_settings
from nfq_guard.service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_config(parser)
    add_last_good(parser)
    parser.add_argument(
        "--user",
        default=pins.USER,
        metavar="NAME",
        help=f"the user that the daemon runs as (default: {pins.USER})",
    )
    parser.add_argument(
        "--rules",
        action="store_true",
        help='first install the rules, or remove them with --remove or with `rules` = "none"',
    )
    parser.add_argument(
        "--keep-rules",
        action="store_true",
        help="do nothing, with exit status 1, unless the configuration's rules are in place",
    )
    parser.add_argument(
        "--done",
        type=Path,
        metavar="DIRECTORY",
        help="make this directory once all is prepared, anew if it exists",
    )
    add_result(parser, "with --remove --rules")
    parser.add_argument("--remove", action="store_true", help="remove what this command made")
    parser.add_argument("--quiet", action="store_true", help="print nothing on success")


def run(args: argparse.Namespace) -> int:
    """Install rules, provide the evidence that the settings ask for, share files; or undo it."""
    if args.keep_rules and (args.rules or args.remove):
        raise UsageError("--keep-rules: not with --rules or --remove")
    if args.done and args.remove:
        raise UsageError("--done: not with --remove")
    instance = pins.instance_of(args.config)
    if args.remove:
        with ExitStack() as stack:
            stack.callback(log_settings.turn_off, instance)
            stack.callback(pins.remove, instance)
            stack.callback(proc_files.share, 0)
            if args.rules:
                _remove_rules(args)
        return EXIT_OK
    settings = load_settings(args.config, args.last_good)
    firewall = firewall_of(settings)
    # With `rules` = "none" those of an earlier configuration may be there, to be removed.
    if args.keep_rules and (settings.rules == "none" or firewall.verify()):
        return EXIT_NOT_FINE
    if args.rules:
        try:
            if settings.rules == "none":
                firewall.remove()  # of an earlier configuration, if a restart has kept them
            else:
                firewall.install()
        except NfqGuardError as error:
            complain(error)
    for problem in proc_files.share(pins.account(args.user).pw_gid):
        complain(problem)
    passed_sockets.leave_tables()
    provided = _provide(settings, instance, args.user)
    if args.done:
        _make_anew(args.done)
    if not args.quiet:
        sys.stdout.write(f"{provided}\n")
    return EXIT_OK


def _make_anew(directory: Path) -> None:
    """Make an empty directory, so that its time is now."""
    try:
        with suppress(FileNotFoundError):
            directory.rmdir()
        directory.mkdir()
    except OSError as error:
        raise OutputError(f"{directory}: {error.strerror}") from None


def _remove_rules(args: argparse.Namespace) -> None:
    try:
        settings: Settings | None = load_settings(args.config, args.last_good)
    except ConfigError as error:
        complain(error)
        settings = None
    removed(settings, args.after)


def _provide(settings: Settings, instance: str, user: str) -> str:
    """Provide the best evidence that requires root, and remove what an earlier configuration had.

    Returns a line about it.
    """
    count = len(settings.queue_numbers)
    refusal: NfqGuardError | None = None
    if settings.evidence in {"auto", "bpf"}:
        try:
            folder = pins.prepare(instance, count, user)
        except NfqGuardError as error:
            refusal = error
        else:
            log_settings.turn_off(instance)
            return f"pinned in {folder}: {count} of the BPF program, one a queue"
    pins.remove(instance)
    if settings.evidence in {"auto", "kernel-log"} and count == 1:
        try:
            log_settings.turn_on(instance)
        except NfqGuardError as error:
            if refusal is None:
                raise
            complain(error)
        else:
            if refusal is not None:
                complain(refusal)
            return "the kernel logs INVALID packets to NFLOG group 0, for the daemon"
    log_settings.turn_off(instance)
    if refusal is not None:
        raise refusal
    return f"nothing to do for evidence {settings.evidence!r}"
