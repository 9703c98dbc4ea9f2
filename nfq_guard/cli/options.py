# SPDX-License-Identifier: MIT
"""Options that several commands have, with one name and one meaning."""

import argparse
from pathlib import Path

from nfq_guard.service.config import DEFAULT_PATH


def add_format(parser: argparse.ArgumentParser) -> None:
    """Text for people or JSON for programs."""
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="text for people, JSON for programs (default: text)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Another configuration file; None is the one in /etc."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration (default: {DEFAULT_PATH})",
    )
