# SPDX-License-Identifier: MIT
"""`nfq-guard reload`: makes the running daemon reload its policy."""

import argparse
import sys

from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_format
from nfq_guard.cli.terminal import write_json, write_line
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until the policy is in force or refused; a refusal prints all mistakes",
    )
    add_socket(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Reload the policy; the current one stays if the new one is invalid.

    Exit status 1 if the policy is refused, or changed settings take a restart.
    """
    with connected(args) as client:
        message = client.request("reload", wait=args.wait)
    restart_for = message.get("restart_for", ()) if args.wait else ()
    if args.format == "json":
        write_json(message)
    elif args.wait:
        write_line(f"policy {message['policy']} with {message['rules']} rules is in force")
        if "mode" in message:
            write_line(f"mode is {message['mode']}, as the file says now")
        for name in restart_for:
            sys.stderr.write(f"nfq-guard: daemon.{name} changed too; it takes a restart\n")
    else:
        write_line("the daemon reads its policy; its log and `nfq-guard status` show the outcome")
    return EXIT_NOT_FINE if restart_for else EXIT_OK
