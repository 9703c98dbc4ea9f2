# SPDX-License-Identifier: MIT
"""The output of `nfq-guard lab`, without running any scenario."""

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from nfq_guard.cli import lab, main
from nfq_guard.flow import IPV4
from nfq_guard.lab.addresses import PLANS, Family
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS


def result(
    mitigation: Mitigation, outcome: Outcome, expected: Outcome, family: Family = IPV4
) -> Result:
    return Result(
        family=family,
        scenario="asymmetric",
        mitigation=mitigation,
        expected=expected,
        outcome=outcome,
        why="the reason",
        invalid=3,
        queued=0,
        dropped=0,
        would_drop=0,
        seconds=0.25,
    )


EXPECTED = result(Mitigation.NONE, Outcome.SURVIVED, Outcome.SURVIVED)
UNEXPECTED = result(Mitigation.GUARD, Outcome.RESET, Outcome.SURVIVED)


def generate(*results: Result) -> Generator[Result, None, None]:
    yield from results


@pytest.mark.parametrize(("results", "status"), [((EXPECTED,), 0), ((EXPECTED, UNEXPECTED), 1)])
def test_an_unexpected_outcome_sets_the_exit_status(
    results: Sequence[Result], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.show(generate(*results), lab.write_record) == status
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in lines] == [each.outcome.value for each in results]
    assert set(lines[0]) >= {
        "scenario", "mitigation", "expected", "outcome", "invalid", "queued", "dropped",
        "would_drop", "seconds", "family",
    }  # fmt: skip


def test_the_table_marks_and_explains_unexpected_outcomes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = lab.show_table(generate(EXPECTED, UNEXPECTED), [Mitigation.NONE, Mitigation.GUARD])
    text = capsys.readouterr().out
    assert status == 1
    assert "reset!" in text
    assert "expected survived, found reset: the reason" in text
    assert "\x1b" not in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_table_names_the_family_where_it_is_not_ipv4_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = (Outcome.SURVIVED, Outcome.SURVIVED)
    results = (result(Mitigation.NONE, *outcomes, family) for family in PLANS)
    assert lab.show_table(generate(*results), [Mitigation.NONE], tuple(PLANS)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:4]]
    assert rows == [
        ["scenario", "IPv", "none"], ["asymmetric", "4", "survived"],
        ["asymmetric", "6", "survived"],
    ]  # fmt: skip


def test_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SCENARIOS)
    assert main(["lab", "list", "--format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["scenario"] for line in lines] == list(SCENARIOS)


def test_an_unknown_scenario_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lab", "run", "no-such"])
    assert ended.value.code == 2
    assert "no-such" in capsys.readouterr().err


def test_captures_need_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["lab", "run", "asymmetric", "--pcap", str(file)]) == 2
    assert f"--pcap: {file} cannot be created as a directory" in capsys.readouterr().err
