# SPDX-License-Identifier: MIT
"""Rules, alerts and dashboard name metrics that exist, and alerts fire when they should."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Action
from nfq_guard.telemetry.metric_table import HISTOGRAMS, METRICS, PREFIX

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus" / "nfq-guard.rules.yml"
DASHBOARD: Final = DEPLOY / "grafana" / "nfq-guard.json"
NAMES: Final = {metric.full_name for metric in METRICS} | {
    PREFIX + metric.name + end for metric in HISTOGRAMS for end in ("_bucket", "_count", "_sum")
}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def promtool(*words: str) -> None:
    done = subprocess.run(
        ["promtool", *words],
        cwd=RULES.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_rules() -> None:
    promtool("check", "rules", RULES.name)


def test_the_example_is_a_configuration() -> None:
    promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should() -> None:
    promtool("test", "rules", "nfq-guard.test.yml")


def test_each_alert_is_tested_both_ways() -> None:
    text = (RULES.parent / "nfq-guard.test.yml").read_text(encoding="utf-8")
    for alert in re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")):
        assert f"- name: {alert} fires" in text
        assert f"- name: {alert} does not fire" in text


@pytest.mark.parametrize("text", [RULES.read_text(encoding="utf-8"), *expressions()])
def test_only_metrics_that_exist(text: str) -> None:
    """And values of labels that exist."""
    assert set(re.findall(r"\bnfq_guard_\w+(?=[{\[) ])", text)) <= NAMES
    assert set(re.findall(r'reason="([\w-]+)"', text)) <= set(Reason)
    assert set(re.findall(r'action="([\w-]+)"', text)) <= set(Action)


def test_the_dashboard_is_one() -> None:
    """Panels do not overlap, and have a description and a query."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"].endswith(".")
        assert panel["targets"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
