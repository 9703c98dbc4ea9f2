# SPDX-License-Identifier: MIT
"""Options and connection of the commands that control a running daemon."""

import argparse
from pathlib import Path

from nfq_guard.service.control.client import Client
from nfq_guard.service.control.socket_path import DEFAULT


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Declare `--socket`."""
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT,
        metavar="PATH",
        help=f"control socket (default: {DEFAULT})",
    )


def connected(args: argparse.Namespace) -> Client:
    """Connect to the daemon that the command line names."""
    return Client(args.socket)
