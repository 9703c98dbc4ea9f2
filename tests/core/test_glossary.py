# SPDX-License-Identifier: MIT
"""The glossary covers every reason, bound and ignored case."""

from nfq_guard.finding import BOUNDS, Ignored, Reason
from nfq_guard.glossary import BOUND_WORDS, IGNORED, REASONS


def test_every_reason_has_a_meaning() -> None:
    assert set(REASONS) == set(Reason)


def test_every_bound_has_words() -> None:
    assert set(BOUND_WORDS) == BOUNDS


def test_every_ignored_case_has_a_meaning() -> None:
    assert set(IGNORED) == set(Ignored)
