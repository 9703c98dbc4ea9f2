# SPDX-License-Identifier: MIT
"""Fixtures of several parts of the service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control import Served


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path / "s")
    yield one
    one.close()
