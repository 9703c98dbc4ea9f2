# SPDX-License-Identifier: MIT
"""What the commands share that speak to a running daemon."""

import argparse
import sys
from pathlib import Path

import orjson

from nfq_guard.service.client import Client
from nfq_guard.service.control_path import DEFAULT


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Where to find it, and in which form to answer."""
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT,
        metavar="PATH",
        help=f"its control socket, if it is not {DEFAULT}",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Text for people or JSON for programs."""
    parser.add_argument("--format", choices=("text", "json"), default="text")


def connected(args: argparse.Namespace) -> Client:
    """The daemon that the command line names."""
    return Client(args.socket)


def write_json(message: object) -> None:
    """One object on one line."""
    sys.stdout.write(orjson.dumps(message).decode() + "\n")
