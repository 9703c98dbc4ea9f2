# SPDX-License-Identifier: MIT
"""Handles tests that cannot run here."""

import os
from typing import NoReturn

import pytest


def cannot_run(reason: str) -> NoReturn:
    """Skip the test on a laptop, and fail it in CI, where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
