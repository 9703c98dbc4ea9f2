# SPDX-License-Identifier: MIT
"""The programs of the machine, and the words of what they print."""

import shlex
from pathlib import Path

import pytest

from nfq_guard.firewall.saved import split
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
    "rule",
    [
        "",
        "-A NFQ_GUARD -i lo -j RETURN",
        "-A X\t-p tcp  -j  ACCEPT ",
        '-A X -m comment --comment "two words" -j DROP',
        "-A X -m comment --comment it\\'s -j DROP",
        "-A X -m comment --comment 'a # b' -j DROP",
        "-A X -m comment --comment a#b -j DROP",
    ],
)
def test_words_are_those_of_a_shell(rule: str) -> None:
    assert split(rule) == shlex.split(rule)
