# SPDX-License-Identifier: MIT
"""The presets on the real kernel, in the lab's networks."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from nfq_guard.cli import main
from nfq_guard.flow import IPV4, IPV6
from nfq_guard.lab.addresses import Family
from nfq_guard.lab.outcome import Mitigation, Outcome, Result
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.trial import Keep, run

pytestmark = pytest.mark.kernel

# The outcome of each scenario when the guard enforces each preset.
EXPECTED = {
    "kube-proxy-dnat": {
        "default": Outcome.SURVIVED,
        "observe": Outcome.RESET,
        "kube-proxy": Outcome.SURVIVED,
        "istio": Outcome.SURVIVED,
        "strict": Outcome.SURVIVED,
        "router": Outcome.SURVIVED,
        "no-leak": Outcome.SURVIVED,
    },
    # The reply is addressed to the router itself, which a rule in FORWARD misses.
    "snat-reply": {
        "default": Outcome.SURVIVED,
        "observe": Outcome.RESET,
        "kube-proxy": Outcome.RESET,
        "istio": Outcome.SURVIVED,
        "strict": Outcome.SURVIVED,
        "router": Outcome.SURVIVED,
        "no-leak": Outcome.SURVIVED,
    },
    # Every policy that drops by INVALID alone breaks it.
    "asymmetric": {
        "default": Outcome.SURVIVED,
        "observe": Outcome.SURVIVED,
        "kube-proxy": Outcome.BLOCKED,
        "istio": Outcome.BLOCKED,
        "strict": Outcome.BLOCKED,
        "router": Outcome.SURVIVED,
        "no-leak": Outcome.SURVIVED,
    },
}
NOTHING = Keep(pcap=None, events=None)


KNOWN = 'i_know = "drops everything"\n'


def _run(
    scenario: str, mitigation: Mitigation, preset: str, keep: Keep = NOTHING, family: Family = IPV4
) -> Result:
    return run(
        SCENARIOS[scenario],
        mitigation,
        family=family,
        keep=keep,
        cancelled=threading.Event(),
        policy=f'[policy]\ninclude = "preset:{preset}"\n{KNOWN if preset == "strict" else ""}',
    )


@pytest.mark.parametrize("scenario", EXPECTED)
def test_outcome_of_each_preset(scenario: str) -> None:
    def outcome(preset: str) -> Outcome:
        return _run(scenario, Mitigation.GUARD, preset).outcome

    with ThreadPoolExecutor(3) as pool:
        found = dict(zip(EXPECTED[scenario], pool.map(outcome, EXPECTED[scenario]), strict=True))
    assert found == EXPECTED[scenario]


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_no_leak_stops_what_the_default_policy_cannot_know(family: Family) -> None:
    """A late RST without an entry; the lab's matrix has the same scenario with `default`."""
    result = _run("private-source", Mitigation.GUARD, "no-leak", family=family)
    assert (result.outcome, result.dropped) == (Outcome.SURVIVED, 1)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_a_rule_stops_the_reset_of_a_reply_that_went_around_the_node(family: Family) -> None:
    """The rule of docs/hosts.md; the lab's matrix has the same scenario with `default`."""
    text = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text("utf-8")
    (policy,) = (
        one for one in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if '"pods"' in one
    )
    result = run(
        SCENARIOS["pod-reset"],
        Mitigation.GUARD,
        family=family,
        keep=NOTHING,
        cancelled=threading.Event(),
        policy=policy,
    )
    assert (result.outcome, result.dropped) == (Outcome.SURVIVED, 1)


def test_whatif_names_the_flow_that_kube_proxy_would_break(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Events of a live run with `observe`, as an operator evaluates a rule before adding it."""
    keep = Keep(pcap=None, events=tmp_path)
    result = _run("asymmetric", Mitigation.GUARD_DRY_RUN, "observe", keep)
    assert result.outcome is Outcome.SURVIVED
    events = tmp_path / "asymmetric-guard-dry-run.jsonl"
    policies = ["--policy", "preset:kube-proxy", "--policy", "preset:default"]
    assert main(["whatif", str(events), *policies, "--format", "json"]) == 0
    report = orjson.loads(capsys.readouterr().out)
    assert report["invalid"] == result.invalid
    assert report["policies"][1]["drops"] == 0
    (flow,) = report["difference"]["only_a_drops"]["false_positives"]["flows"]
    assert flow.startswith("192.0.2.2:")
    assert flow.endswith(" > 203.0.113.2:80")
