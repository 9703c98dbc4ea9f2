# SPDX-License-Identifier: MIT
"""The catalogue of faults is whole, and the tests that it names are there."""

import re
from pathlib import Path

import pytest

from tests.faults import daemon, page, service
from tests.faults.catalogue import CATALOGUE
from tests.faults.outcome import Outcome, percentile

TREE = Path(__file__).parents[2]
NAMED = {test for entry in CATALOGUE for test in entry.tests}


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    return f"\ndef {name}(" in (TREE / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("test", sorted(NAMED))
def test_the_named_test_exists(test: str) -> None:
    assert exists(test)


def test_every_fault_has_its_row() -> None:
    codes = [entry.code for entry in CATALOGUE]
    assert codes == [*(f"F{n}" for n in range(1, 24)), *(f"A{n}" for n in range(1, 15)), "T1"]
    for entry in CATALOGUE:
        assert entry.tests or entry.campaigns or entry.reason
    campaigns = {name for entry in CATALOGUE for name in entry.campaigns}
    assert campaigns == {*daemon.FAULTS, *service.FAULTS}


def test_the_page_says_what_was_missed_and_why() -> None:
    outcomes = [
        Outcome("F1", "once", "a", "b", met=False, exact=True),
        Outcome("F6", "twice", "c", "d", met=True),
    ]
    text = page.render(outcomes, 3)
    assert "| F1 | once | a | b | no | yes |" in text
    assert "| F6 | twice | c | d | yes | - |" in text
    assert re.search(r"^- F1: the outage", text, re.MULTILINE)
    assert "- F6" not in text
    assert "short form:" not in text
    assert "short form:" in page.render(outcomes, 3, short=True)
    assert page.line(outcomes[0]).startswith("F1  MISSED once: b, exact")


def test_a_percentile_is_one_of_the_values() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([7], 0.99) == 7
