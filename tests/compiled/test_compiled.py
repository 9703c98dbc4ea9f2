# SPDX-License-Identifier: MIT
"""The modules that pyproject.toml lists are machine code in a wheel: run by `make compiled`."""

import importlib
import importlib.machinery
import sys

import pytest

import nfq_guard
from tests.support.modules import compiled

COMPILED_TREE = "build/compiled" in nfq_guard.__path__[0]


@pytest.mark.parametrize("name", compiled())
def test_compiled_modules(name: str) -> None:
    """Machine code in the compiled tree; never elsewhere, where it would hide its source."""
    importlib.import_module(name)
    origin = sys.modules[name].__file__
    assert origin is not None
    assert origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)) == COMPILED_TREE
