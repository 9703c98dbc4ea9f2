# SPDX-License-Identifier: MIT
"""Directories that several daemons share, each with an entry of its own; the last removes it."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

# Another daemon can remove the directory once each time that one stops.
_TRIES: Final = 16


def create_in(make: Callable[[], None]) -> None:
    """Call `make`, which creates the directory if it is missing, and then an entry in it.

    If another daemon removes the directory between the two steps, both are repeated.

    Raises:
        OSError: As `make` raises it.
    """
    for _ in range(_TRIES - 1):
        with suppress(FileNotFoundError):
            make()
            return
    make()


def remove_unused(folder: Path) -> None:
    """Remove the directory, unless it is missing or another daemon has an entry in it."""
    with suppress(OSError):
        folder.rmdir()
