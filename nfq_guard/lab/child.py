# SPDX-License-Identifier: MIT
"""What the lab's own Python processes need to find their modules."""

import os
import sys


def environment() -> dict[str, str]:
    """The environment of a child: it imports from where this process does, and nowhere else.

    The Debian package has its modules where only its launcher looks for them. In the current
    directory, where Python looks first, another user may have planted some.
    """
    places = os.pathsep.join(filter(None, sys.path))
    return os.environ | {"PYTHONPATH": places, "PYTHONSAFEPATH": "1"}
