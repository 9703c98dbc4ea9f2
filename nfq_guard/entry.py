# SPDX-License-Identifier: MIT
"""The entry point of `nfq-guard`: an interrupt while the command is loaded is silent too."""

import gc
import sys


def main() -> None:
    """Run the command of `sys.argv` and exit with its status."""
    # All that is loaded stays. Looking for garbage in it takes a twelfth of the start.
    gc.disable()
    try:
        from nfq_guard.cli import main as run  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        # EXIT_INTERRUPTED of `errors`, which may not be loaded yet.
        sys.exit(130)
    sys.exit(run())
