# SPDX-License-Identifier: MIT
"""Another daemon that stops while this one creates an entry in a directory of both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_TIMES: Final = 3


@contextmanager
def removed_when_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Remove `folder` the first times that it is created; yields the removals."""
    removals: list[Path] = []
    mkdir = Path.mkdir

    def mkdir_then_remove(
        path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False
    ) -> None:
        mkdir(path, mode, parents, exist_ok)
        if path == folder and len(removals) < _TIMES:
            path.rmdir()
            removals.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir_then_remove)
        yield removals
