# SPDX-License-Identifier: MIT
"""Options that several commands share."""

import argparse
from pathlib import Path

from nfq_guard.service.config import DEFAULT_PATH


def add_format(parser: argparse.ArgumentParser) -> None:
    """Declare `--format text|json`."""
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="text for people, JSON for programs (default: text)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare `--config FILE`; its value is None for the default path."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration (default: {DEFAULT_PATH})",
    )
