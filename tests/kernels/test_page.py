# SPDX-License-Identifier: MIT
"""The page on the kernels tells what was run on them, and what went wrong."""

from typing import Final

from tests.kernels import page
from tests.kernels.outcome import Outcome

_SEED: Final = 7


def records() -> list[dict[str, object]]:
    """The report of a kernel on which everything is as expected."""
    trial = {"step": "matrix", "scenario": "snat-reply", "mitigation": "guard"}
    return [
        {"step": "kernel", "release": "6.1.0-9-cloud-amd64", "version": "#1", "rules": "6.1"},
        {"step": "kernel", "asked": "6.1"},
        {"step": "evidence", "evidence": "bpf", "why": None},
        {"step": "fuzz", "packets": 5_760, "flows": 40, "windows": True, "mismatches": []},
        {"step": "bpf", "passed": True, "summary": "25 passed"},
        trial | {"expected": "saved", "outcome": "saved", "seconds": 1.0},
        {"step": "matrix", "status": 0, "seconds": 3.0},
        {"step": "end"},
    ]


def ran(*extra: dict[str, object]) -> Outcome:
    """That kernel, and what else it reported."""
    outcome = Outcome("6.1", "6.1.1-1")
    for record in (*records(), *extra):
        outcome.add(record)
    return outcome


def rows(text: str) -> list[str]:
    """The lines of the page's table."""
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_row_counts_what_was_run() -> None:
    text = page.render([ran()], _SEED)
    assert rows(text)[2].startswith(
        "| 6.1.0-9-cloud-amd64 (6.1.1-1) | 6.1 | bpf | 5,760 | 0 | yes | 25 passed | 1 of "
    )
    assert rows(text)[2].endswith(" | 0 |")
    assert f"Seed of the fuzz: {_SEED}." in text
    assert "- 6.1: " not in text


def test_what_went_wrong_is_named_below_the_table() -> None:
    bad = ran(
        {"step": "fuzz", "mismatches": [["ctstate: kernel INVALID, ours ESTABLISHED"]]},
        {"step": "evidence", "evidence": "ctnetlink", "why": "no BTF"},
    )
    text = page.render([bad], _SEED)
    assert "- 6.1: no window: no BTF\n" in text
    assert "- 6.1: evidence is ctnetlink, and was bpf: no BTF\n" in text
    assert "- 6.1: fuzz: ctstate: kernel INVALID, ours ESTABLISHED\n" in text
