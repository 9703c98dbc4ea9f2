# SPDX-License-Identifier: MIT
"""Fixtures of the tests of whatif."""

from tests.policy.conftest import judge_case

__all__ = ["judge_case"]
