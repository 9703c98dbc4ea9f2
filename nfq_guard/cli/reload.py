# SPDX-License-Identifier: MIT
"""`nfq-guard reload`: makes the running daemon reload its policy."""

import argparse

from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_format
from nfq_guard.cli.terminal import write_json, write_line
from nfq_guard.errors import EXIT_OK


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
    """Reload the policy; the current one stays if the new one is invalid."""
    with connected(args) as client:
        message = client.request("reload", wait=args.wait)
    if args.format == "json":
        write_json(message)
    elif args.wait:
        write_line(f"policy {message['policy']} with {message['rules']} rules is in force")
        for name in message.get("restart_for", ()):
            write_line(f"note: daemon.{name} changed too; it takes a restart")
    else:
        write_line("the daemon reads its policy; its log and `nfq-guard status` show the outcome")
    return EXIT_OK
