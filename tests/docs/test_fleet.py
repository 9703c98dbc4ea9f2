# SPDX-License-Identifier: MIT
"""The page of the fleet has the figures of its record, and names existing series and settings."""

import json
import re
from typing import Final

from tests.deploy.test_prometheus import RULES, expressions
from tests.fleet import page

_TEXT: Final = page.PAGE.read_text(encoding="utf-8")


def test_the_figures_are_those_of_the_record() -> None:
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    assert page.filled(_TEXT, record) == _TEXT, "`make fleet` writes them"
    assert len(record["runs"]) > 2


def test_the_series_of_the_fleet_are_recorded() -> None:
    recorded = re.findall(r"record: (job\w*:\S+)", RULES.read_text(encoding="utf-8"))
    named = re.findall(r"`(job\w*:nfq_guard_[\w:]+)`", _TEXT)
    assert set(named) <= set(recorded)
    assert f"the {len(expressions())} of the Grafana dashboard" in _TEXT
    assert len(recorded) == 5
    assert "the five recording rules" in _TEXT
