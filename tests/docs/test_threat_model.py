# SPDX-License-Identifier: MIT
"""Each claim of docs/threat-model.md names a test that exists."""

import re
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PAGE = (TREE / "docs/threat-model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("test", sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE))))
def test_the_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"\ndef {name}(" in (TREE / file).read_text(encoding="utf-8")


def test_every_claim_names_its_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    claims = [line for line in rows if not line.endswith("| verified by |")]
    assert len(claims) > 30
    assert [line for line in claims if "::test_" not in line] == []
