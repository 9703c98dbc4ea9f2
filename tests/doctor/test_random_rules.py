# SPDX-License-Identifier: MIT
"""What the doctor says of random rule sets is what the kernel does with an INVALID packet."""

import pytest

from tests.fuzz_rules.__main__ import run

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_rule_sets(seed: int) -> None:
    """`make fuzz-rules` runs many more."""
    tally = run(10, seed)
    assert tally.failures == []
