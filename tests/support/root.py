# SPDX-License-Identifier: MIT
"""What a program for developers says where it may not do its work."""

import os
import sys

from nfq_guard.errors import EXIT_NO_PRIVILEGE


def require_root(program: str) -> None:
    """End the program in one line unless it runs as root.

    Args:
        program: Its name, for the message.
    """
    if os.geteuid() != 0:
        sys.stderr.write(f"{program}: needs root\n")
        sys.exit(EXIT_NO_PRIVILEGE)
