# SPDX-License-Identifier: MIT
"""Results of flow lookups, for tests in which none may fail."""

from collections.abc import Sequence

from nfq_guard.flow import FlowSnapshot, LookupFailed, LookupResult


def answered(results: Sequence[LookupResult]) -> list[FlowSnapshot | None]:
    """The results, none of which may be an error."""
    answers: list[FlowSnapshot | None] = []
    for result in results:
        assert not isinstance(result, LookupFailed), result
        answers.append(result)
    return answers
