# SPDX-License-Identifier: MIT
"""What the tests of whatif share."""

from tests.policy.conftest import judge_case

__all__ = ["judge_case"]
