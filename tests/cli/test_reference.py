# SPDX-License-Identifier: MIT
"""The pages below docs/reference/ are those that the code generates."""

import pytest

from nfq_guard import errors
from tests.support.reference import DIRECTORY, pages


@pytest.mark.parametrize("name", pages())
def test_page_is_that_of_the_code(name: str) -> None:
    assert (DIRECTORY / name).read_text(encoding="utf-8") == pages()[name], "run `make reference`"


def test_no_other_page() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == set(pages())


def test_every_exit_status_has_a_meaning() -> None:
    named = {value for value in vars(errors).values() if isinstance(value, int)}
    assert set(errors.EXIT_MEANINGS) == named
