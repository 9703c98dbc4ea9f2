# SPDX-License-Identifier: MIT
"""How `nfq-guard lab` shows results, without measuring any."""

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from nfq_guard.cli import lab, main
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS


def result(mitigation: Mitigation, outcome: Outcome, expected: Outcome) -> Result:
    return Result(
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


FINE = result(Mitigation.NONE, Outcome.SURVIVED, Outcome.SURVIVED)
WRONG = result(Mitigation.GUARD, Outcome.RESET, Outcome.SURVIVED)


def results(*these: Result) -> Generator[Result, None, None]:
    yield from these


@pytest.mark.parametrize(("these", "status"), [((FINE,), 0), ((FINE, WRONG), 1)])
def test_an_unexpected_outcome_is_the_status(
    these: Sequence[Result], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.show(results(*these), lab.write_record) == status
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in lines] == [one.outcome.value for one in these]
    assert set(lines[0]) >= {
        "scenario", "mitigation", "expected", "outcome", "invalid", "queued", "dropped",
        "would_drop", "seconds",
    }  # fmt: skip


def test_table_marks_and_explains_what_is_not_as_expected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = lab.show_table(results(FINE, WRONG), [Mitigation.NONE, Mitigation.GUARD])
    text = capsys.readouterr().out
    assert status == 1
    assert "reset!" in text
    assert "expected survived, found reset: the reason" in text
    assert "\x1b" not in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SCENARIOS)
    assert main(["lab", "list", "--format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["scenario"] for line in lines] == list(SCENARIOS)


def test_unknown_scenario_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lab", "run", "no-such"])
    assert ended.value.code == 2
    assert "no-such" in capsys.readouterr().err


def test_captures_need_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["lab", "run", "asymmetric", "--pcap", str(file)]) == 2
    assert f"--pcap: {file} cannot be a directory" in capsys.readouterr().err
