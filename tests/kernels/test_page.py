# SPDX-License-Identifier: MIT
"""The page on the kernels tells what was run on them, and what went wrong."""

from typing import Final

from tests.kernels import page
from tests.kernels.outcome import TESTS, Outcome

_SEED: Final = 7


def records() -> list[dict[str, object]]:
    """The report of a kernel on which everything is as expected."""
    trial = {"step": "matrix", "scenario": "snat-reply", "mitigation": "guard", "family": 6}
    wanted = ["kernel", "evidence", "fuzz", *TESTS, "matrix"]
    return [
        {"step": "begin", "wanted": wanted},
        {"step": "kernel", "release": "6.1.0-9-cloud-amd64", "version": "#1", "rules": "6.1"},
        {"step": "kernel", "asked": "6.1"},
        {"step": "evidence", "evidence": "bpf", "why": None},
        {"step": "fuzz", "packets": 5_760, "flows": 40, "windows": True, "mismatches": []},
        {"step": "window", "passed": True, "summary": "25 passed"},
        {"step": "native", "passed": True, "summary": "5 passed"},
        {"step": "live", "passed": True, "summary": "30 passed"},
        {"step": "log", "passed": True, "summary": "11 passed"},
        {"step": "links", "passed": True, "summary": "4 passed"},
        {"step": "owners", "passed": True, "summary": "6 passed"},
        {"step": "service", "passed": True, "summary": "38 passed"},
        {"step": "service", "installed_evidence": "bpf", "capabilities": 0x1000},
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


def test_a_row_says_what_the_guard_sees() -> None:
    text = page.render([ran()], _SEED)
    release = "6.1.0-9-cloud-amd64 (6.1.1-1)"
    assert rows(text)[2] == f"| {release} | 6.1 | bpf | bpf | CAP_NET_ADMIN alone |"


def test_a_row_counts_what_was_run() -> None:
    text = page.render([ran()], _SEED)
    tests = "25 passed | 5 passed | 30 passed | 11 passed | 4 passed | 6 passed | 38 passed"
    assert rows(text)[5].startswith(f"| 6.1 | 5,760 | 0 | yes | {tests} | 1 of ")
    assert rows(text)[5].endswith(" | 0 |")
    assert f"Seed of the fuzz: {_SEED}." in text
    assert "- 6.1" not in text


def test_what_went_wrong_is_named_below_the_tables() -> None:
    bad = ran(
        {"step": "fuzz", "mismatches": [["ctstate: kernel INVALID, ours ESTABLISHED"]]},
        {"step": "evidence", "evidence": "ctnetlink", "why": "no BTF"},
        {"step": "window", "not_run": "no BTF"},
        {"step": "native", "passed": False, "summary": "1 failed", "bad": ["FAILED test_x"]},
        {"step": "service", "capabilities": 0x3000},
    )
    text = page.render([bad], _SEED)
    assert "- 6.1, window: not run: no BTF\n" in text
    assert "- 6.1: evidence: ctnetlink, and was bpf: no BTF\n" in text
    assert "- 6.1: fuzz: ctstate: kernel INVALID, ours ESTABLISHED\n" in text
    assert "- 6.1: tests of the native table: FAILED test_x\n" in text
    assert rows(text)[2].endswith(" | 0x3000 |")


def test_a_wanted_step_without_a_report_is_a_problem() -> None:
    outcome = Outcome("6.1", "6.1.1-1")
    for record in records():
        if record["step"] != "links":
            outcome.add(record)
    assert outcome.problems() == ["links was not run"]


def test_steps_of_a_short_run_are_told() -> None:
    outcome = ran({"step": "begin", "wanted": ["service"], "short": True})
    for record in ({"step": "service", "passed": True, "summary": "4 passed"}, {"step": "end"}):
        outcome.add(record)
    assert "| 6 passed | 4 passed (short form) |" in page.render([outcome], _SEED)


def test_what_programs_with_rules_showed_is_in_a_table_if_it_was_run() -> None:
    row = "| Docker | the host to its own published port | reset | survived | 6.1 |"
    assert row in rows(page.render([ran()], _SEED))
    missing = ran({"step": "begin", "wanted": ["owners"]})
    assert "| Docker |" not in page.render([missing], _SEED)


def test_a_step_that_is_run_again_replaces_what_it_found() -> None:
    outcome = ran({"step": "fuzz", "failed": "no memory"}, {"step": "begin", "wanted": ["fuzz"]})
    assert "fuzz was not run" in outcome.problems()
    fuzzed: dict[str, object] = {"packets": 9_000, "flows": 70, "windows": True, "mismatches": []}
    for record in ({"step": "fuzz", **fuzzed}, {"step": "end"}):
        outcome.add(record)
    assert outcome.problems() == []
    assert "| 9,000 | 0 | yes | 25 passed |" in page.render([outcome], _SEED)
