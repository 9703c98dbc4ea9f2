# SPDX-License-Identifier: MIT
"""`nfq-guard mode`: switches the running daemon between dry-run and enforce."""

import argparse
import sys

from nfq_guard.cli import rules_of_root
from nfq_guard.cli.answers import MODE, checked
from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_format
from nfq_guard.cli.terminal import write_json, write_line
from nfq_guard.engine import Mode
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("mode", choices=[mode.value for mode in Mode])
    add_socket(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Switch the mode until the next start, which uses the configured mode again.

    As root, installs the rules of the new mode if the daemon is not allowed to. Exit status 1 if
    that fails: the rules then keep the fail mode of the other mode.
    """
    with connected(args) as client:
        message = checked(client.request("mode", mode=args.mode), MODE)
        if "problem" in message:
            left = rules_of_root.install(client, args.socket, message.pop("problem"))
            message |= {} if left is None else {"problem": left}
    if args.format == "json":
        write_json(message)
    else:
        write_line(f"mode is {message['mode']} until the daemon is restarted")
    problem = message.get("problem")
    if problem is not None:
        sys.stderr.write(f"nfq-guard: the rules keep their fail mode: {problem}\n")
    return EXIT_OK if problem is None else EXIT_NOT_FINE
