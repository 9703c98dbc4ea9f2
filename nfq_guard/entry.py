# SPDX-License-Identifier: MIT
"""The entry point of `nfq-guard`: how a command is loaded, and how its process ends."""

import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit with its status."""
    # All that is loaded stays. Looking for garbage in it takes a twelfth of the start.
    gc.disable()
    try:
        # Imported here, so that an interrupt meanwhile is silent too.
        from nfq_guard.cli import main as run  # noqa: PLC0415
    except KeyboardInterrupt:
        # EXIT_INTERRUPTED of `errors`, which may not be loaded yet.
        sys.exit(130)
    try:
        status = run()
    except SystemExit as end:  # of help, or of wrong usage
        if not isinstance(end.code, int):
            raise
        status = end.code
    _end(status)


def _end(status: int) -> NoReturn:
    """End the process without freeing its memory piece by piece, a seventh of a daemon's CPU time.

    A command closes what it has opened; only its standard streams still hold output.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(status)  # Python says what cannot be written
    os._exit(status)
