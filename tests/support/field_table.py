# SPDX-License-Identifier: MIT
"""README's table of scenarios and mitigations, from the results of `lab matrix --family both`."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from nfq_guard.lab.addresses import PLANS, Family
from nfq_guard.lab.outcome import Mitigation, Outcome
from nfq_guard.lab.scenarios import SCENARIOS

_README: Final = Path(__file__).parent.parent.parent / "README.md"
_MARK: Final = "<!-- matrix -->\n"
_HEADS: Final = {
    Mitigation.NONE: "none",
    Mitigation.BE_LIBERAL: "be_liberal",
    Mitigation.DROP_PREROUTING: "DROP in PREROUTING",
    Mitigation.DROP_FORWARD: "DROP in FORWARD",
    Mitigation.DROP_INPUT: "DROP in INPUT",
    Mitigation.GUARD: "guard",
    Mitigation.GUARD_HEAL: "guard, preset heal",
    Mitigation.GUARD_DRY_RUN: "guard, dry-run",
}

Outcomes = Mapping[tuple[str, str, Family], str]
"""The outcome of each scenario, mitigation and family."""


def read(records: Iterable[Mapping[str, Any]]) -> Outcomes:
    """The outcomes in the JSON of `lab matrix`."""
    return {(one["scenario"], one["mitigation"], one["family"]): one["outcome"] for one in records}


def render(outcomes: Outcomes) -> str:
    """The table; a row covers all families unless their outcomes differ."""
    lines = [f"| scenario | {' | '.join(_HEADS.values())} |", "|---" * (len(_HEADS) + 1) + "|"]
    for scenario in SCENARIOS:
        rows = {
            family: " | ".join(_cell(outcomes[scenario, one, family]) for one in _HEADS)
            for family in PLANS
        }
        if len(set(rows.values())) == 1:
            lines.append(f"| {scenario} | {rows[4]} |")
        else:
            lines += [f"| {scenario}, IPv{family} | {row} |" for family, row in rows.items()]
    return "\n".join(lines)


def _cell(outcome: str) -> str:
    return outcome if outcome == Outcome.SURVIVED else f"**{outcome}**"


def main(path: str) -> None:
    """Write the table of the results in the file `path` to README."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    table = render(read(json.loads(line) for line in lines))
    text = _README.read_text(encoding="utf-8")
    pattern = re.compile(f"{_MARK}.*?\n\n", re.DOTALL)
    _README.write_text(pattern.sub(lambda _: f"{_MARK}{table}\n\n", text, count=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
