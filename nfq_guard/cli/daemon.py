# SPDX-License-Identifier: MIT
"""Options and connection of the commands that control a running daemon."""

import argparse
import sys
from pathlib import Path

from nfq_guard.service.control.client import Client
from nfq_guard.service.control.socket_path import DEFAULT, find


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Declare `--socket`."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help=f"control socket (default: {DEFAULT}, or that of the daemon of this network "
        "namespace)",
    )


def connected(args: argparse.Namespace) -> Client:
    """Connect to the daemon that the command line names, or that of this network namespace.

    A line on standard error names a daemon that is not at the default path, or is in another
    network namespace. The socket is stored in `args` for the next connection.
    """
    if args.socket is None:
        args.socket, here = find(DEFAULT)
        if args.socket != DEFAULT:
            note = f"the daemon of this network namespace is at {args.socket}"
        else:
            note = "" if here else f"the daemon at {DEFAULT} is in another network namespace"
        if note:
            sys.stderr.write(f"nfq-guard: {note}\n")
    return Client(args.socket)
