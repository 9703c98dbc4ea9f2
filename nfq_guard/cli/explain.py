# SPDX-License-Identifier: MIT
"""`nfq-guard explain`: explains conntrack's verdict on one packet of a capture."""

import argparse
import stat
import sys
from dataclasses import replace
from pathlib import Path

from nfq_guard.cli import replay_run as replaying
from nfq_guard.cli.explain_text import explanation_text
from nfq_guard.cli.options import add_format, whole_number
from nfq_guard.cli.terminal import columns, fitted, printable, wants_colour, write_json
from nfq_guard.errors import EXIT_OK, UsageError
from nfq_guard.replay.explanation import explain
from nfq_guard.replay.explanation_record import explanation_object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Explain one packet of a capture: its flow so far, the window of both peers before it, "
        "each bound with the packet on it, what other kernels would have called it, and what the "
        "policy does."
    )
    parser.add_argument("capture", metavar="CAPTURE", help="a capture; it is read several times")
    parser.add_argument(
        "frame",
        metavar="FRAME",
        type=whole_number(1),
        help="number of the frame, from 1",
    )
    add_format(parser)
    replaying.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    if _is_read_once(Path(args.capture)):
        raise UsageError(f"CAPTURE: {args.capture} cannot be read twice; save it to a file")
    explanation = explain(
        args.capture, args.frame, replaying.settings_of(args), replaying.policy_of(args)
    )
    explanation = replace(explanation, file=printable(explanation.file))
    if args.format == "json":
        write_json(explanation_object(explanation))
    else:
        text = explanation_text(explanation, colour=wants_colour(), columns=columns())
        sys.stdout.write(fitted(text))
    return EXIT_OK


def _is_read_once(path: Path) -> bool:
    """Whether this is a pipe, a device or the like; other problems show when it is opened."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
