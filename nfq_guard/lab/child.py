# SPDX-License-Identifier: MIT
"""What the lab's own Python processes need to find their modules."""

import os
import sys


def environment() -> dict[str, str]:
    """The environment of a child: it imports from where this process does.

    The Debian package has its modules where only its launcher looks for them.
    """
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
