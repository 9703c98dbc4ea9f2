# SPDX-License-Identifier: MIT
"""The programs of the machine, and the words of what they print."""

from pathlib import Path

import pytest

from nfq_guard.firewall.saved import meaning, parse, split
from nfq_guard.firewall.xtables import System


def test_a_program_is_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [tmp_path / name / "made" for name in ("one", "two")]
    for path in made:
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho {path.parent.name} $LC_ALL\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{made[0].parent}:{made[1].parent}")
    system = System()
    assert system.run(["made"], "").stdout == "one C\n"
    made[0].unlink()
    assert system.run(["made"], "").stdout == "two C\n"
    made[1].chmod(0o644)
    assert not system.find("made")
    made[1].chmod(0o755)
    assert system.find("made")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("", []),
        ("-A\tX  -j  DROP ", ["-A", "X", "-j", "DROP"]),
        ('-m comment --comment "two words" -j DROP', ["two words", "-j", "DROP"]),
        (r"""--comment "it\'s a \"\\q\"" -j DROP""", [r'''it's a "\q"''', "-j", "DROP"]),
        ("--comment a#b -j DROP", ["a#b", "-j", "DROP"]),
        ('--log-prefix "" -j LOG', ["", "-j", "LOG"]),
        ('--comment "no end -j DROP', ['"no', "end", "-j", "DROP"]),
    ],
)
def test_words_as_iptables_save_quotes_them(rule: str, words: list[str]) -> None:
    assert split(rule)[-len(words) or None :] == words


def test_lines_of_iptables_save_that_are_none_are_skipped() -> None:
    text = "*mangle\n:\n:LOST\n:INPUT ACCEPT [0:0]\n-A \n-A INPUT -j DROP\n-"
    table = parse(text)["mangle"]
    assert table.policies == {"INPUT": "ACCEPT"}
    assert [rule.target for rule in table.of("INPUT")] == ["DROP"]


def test_a_rate_that_is_no_number() -> None:
    """A superscript is a digit for `str.isdigit`, and no number."""
    assert ("--hashlimit-above", "1000\N{SUPERSCRIPT TWO}/sec") in meaning(
        "--hashlimit-above 1000\N{SUPERSCRIPT TWO}/sec"
    )
