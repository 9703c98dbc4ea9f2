"""The presets, held against what they promise."""

from pathlib import Path

import pytest

from nfq_guard.policy.default import default_model, default_policy
from nfq_guard.policyfile import load_policy, preset_names
from tests.support.policies import Case

PRESETS = ("default", "istio", "kube-proxy", "observe", "router", "strict")


def test_presets_are_shipped() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_begins_with_for_whom_and_what_it_risks(name: str) -> None:
    text = (Path("rules/policy") / f"{name}.toml").read_text()
    head = text.split("[policy]")[0]
    assert text.startswith(f"# {name}: for ")
    assert "Risk: " in head


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_policy(name: str) -> None:
    assert load_policy(f"preset:{name}").source == f"preset:{name}"


def test_default_in_code_is_the_file() -> None:
    """The daemon's default needs no file; the file says the same with its reasons."""
    assert default_model() == load_policy("preset:default")


def test_default_policy_is_ready(judge_case: Case) -> None:
    assert default_policy().decide(*judge_case, 0.0).rule == "window"
