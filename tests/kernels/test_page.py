# SPDX-License-Identifier: MIT
"""The page on the kernels shows the steps that were run, and failures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.kernels import page, record
from tests.kernels.outcome import TESTS, Outcome

_SEED: Final = 7


def begun(*wanted: str, short: bool = False) -> dict[str, object]:
    """The first line of a report."""
    return {"step": "begin", "wanted": wanted, "short": short, "tree": "0123abc"}


def records() -> list[dict[str, object]]:
    """The report of a kernel on which everything is as expected."""
    trial = {"step": "matrix", "scenario": "snat-reply", "mitigation": "guard", "family": 6}
    return [
        begun("kernel", "evidence", "fuzz", *TESTS, "matrix"),
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
        {"step": "container", "passed": True, "summary": "3 passed"},
        {"step": "service", "passed": True, "summary": "38 passed"},
        {"step": "service", "installed_evidence": "bpf", "capabilities": 0x1000},
        trial | {"expected": "saved", "outcome": "saved", "seconds": 1.0},
        {"step": "matrix", "status": 0, "seconds": 3.0},
        {"step": "end"},
    ]


def reported(lines: Iterable[dict[str, object]], *, version: str = "6.1.1-1") -> Outcome:
    """A kernel with these reports."""
    outcome = Outcome("6.1", version)
    for line in lines:
        outcome.add(line)
    return outcome


def ran(*extra: dict[str, object]) -> Outcome:
    """That kernel, with further reports."""
    return reported((*records(), *extra))


def rows(text: str) -> list[str]:
    """The lines of the page's table."""
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_row_says_what_the_guard_sees() -> None:
    text = page.render([ran()], _SEED)
    release = "6.1.0-9-cloud-amd64 (6.1.1-1)"
    assert rows(text)[2] == f"| {release} | 6.1 | bpf | bpf | CAP_NET_ADMIN alone |"


def test_a_row_counts_what_was_run() -> None:
    text = page.render([ran()], _SEED)
    tests = (
        "25 passed | 5 passed | 30 passed | 11 passed | 4 passed | 6 passed | 3 passed | 38 passed"
    )
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
    outcome = reported(line for line in records() if line["step"] != "links")
    assert outcome.problems() == ["links was not run"]


def test_steps_of_a_short_run_are_told() -> None:
    outcome = ran(begun("service", short=True))
    for line in ({"step": "service", "passed": True, "summary": "4 passed"}, {"step": "end"}):
        outcome.add(line)
    assert "| 3 passed | 4 passed (short form) |" in page.render([outcome], _SEED)


def test_what_programs_with_rules_showed_is_in_a_table_if_it_was_run() -> None:
    row = "| Docker | the host to its own published port | reset | survived | 6.1 |"
    assert row in rows(page.render([ran()], _SEED))
    missing = ran(begun("owners"))
    assert "| Docker |" not in page.render([missing], _SEED)


def test_transfers_are_in_a_table_if_they_were_run() -> None:
    slow = {"injected": "9 transfers", "measured": "1 broken"}
    text = page.render([ran({"step": "transfers", **slow, "met": False})], _SEED)
    assert "| 6.1 | 9 transfers | 1 broken |" in rows(text)
    assert "- 6.1: transfers: 1 broken\n" in text
    assert "## Healthy transfers" not in page.render([ran()], _SEED)


def test_a_step_that_is_run_again_replaces_what_it_found() -> None:
    outcome = ran({"step": "fuzz", "failed": "no memory"}, begun("fuzz"))
    assert "fuzz was not run" in outcome.problems()
    fuzzed: dict[str, object] = {"packets": 9_000, "flows": 70, "windows": True, "mismatches": []}
    for line in ({"step": "fuzz", **fuzzed}, {"step": "end"}):
        outcome.add(line)
    assert outcome.problems() == []
    assert "| 9,000 | 0 | yes | 25 passed |" in page.render([outcome], _SEED)


def later(packets: int) -> Outcome:
    """A run of one step, on that kernel."""
    fuzz = {"step": "fuzz", "packets": packets, "windows": True, "mismatches": [], "seconds": 90.0}
    return reported((begun("fuzz") | {"tree": "4567def"}, fuzz, {"step": "end"}))


def test_steps_that_ran_one_by_one_are_put_together(tmp_path: Path) -> None:
    file = tmp_path / "kernels.jsonl"
    record.write([ran(), Outcome("7", "7.3-1")], file)
    record.write([later(9_000)], file)
    (old, newest) = record.read(file)
    assert newest == Outcome("7", "7.3-1")
    assert old.steps == ran().steps | later(9_000).steps
    assert old.trials == ran().trials
    assert old.problems() == []
    text = page.render([old], _SEED)
    assert "| 9,000 | 0 | yes | 25 passed |" in text
    assert rows(text)[-1].startswith("| 6.1 | 4567def, 1.5 min | -")
    assert rows(text)[-1].endswith("| 0123abc, 0.1 min |")


def test_a_newer_package_of_a_kernel_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "kernels.jsonl"
    record.write([ran()], file)
    newer = reported(records()[:3], version="6.1.2-1")
    record.write([newer], file)
    assert record.read(file) == [newer]


def test_a_run_of_few_steps_shows_what_failed_in_it(tmp_path: Path) -> None:
    file = tmp_path / "kernels.jsonl"
    record.write([ran()], file)
    record.write([reported((begun("links"), {"step": "links", "failed": "no netem"}))], file)
    (found,) = record.read(file)
    assert found.problems()[0] == "links failed: no netem"
    assert found.trees["links"] == "0123abc"
