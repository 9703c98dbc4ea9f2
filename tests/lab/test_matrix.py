# SPDX-License-Identifier: MIT
"""Every scenario with every mitigation comes to what its table says, on the running kernel."""

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from nfq_guard.conntrack.kernels import KERNELS, KernelRules
from nfq_guard.lab.outcome import Mitigation, Outcome
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.scenarios.base import RUNNING_KERNEL, Scenario

pytestmark = pytest.mark.kernel

WITHOUT_GUARD = [m for m in Mitigation if not m.value.startswith("guard")]


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nfq_guard", "lab", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def measure(mitigations: Iterable[Mitigation]) -> dict[tuple[str, str], dict[str, Any]]:
    done = lab("matrix", "--format", "json", "--mitigation", *mitigations)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {(record["scenario"], record["mitigation"]): record for record in records}


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str], dict[str, Any]]:
    return measure(WITHOUT_GUARD)


def test_every_outcome_is_the_expected_one(
    plain: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert len(plain) == len(SCENARIOS) * len(WITHOUT_GUARD)
    for record in plain.values():
        assert record["outcome"] == record["expected"], record


@pytest.mark.parametrize("scenario", ["kube-proxy-dnat", "istio-redirect", "moby-hairpin"])
def test_nothing_done_is_a_reset(
    plain: dict[tuple[str, str], dict[str, Any]], scenario: str
) -> None:
    """The kernel calls the stray INVALID, somebody answers RST, and the connection is gone."""
    record = plain[scenario, "none"]
    assert record["outcome"] == "reset"
    assert record["invalid"] == 2  # the stray and the RST that it draws
    assert record["rst"]


def test_untranslated_reply_is_seen_outside(
    plain: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert all(leak.startswith("10.244.0.2:") for leak in plain["kube-proxy-dnat", "none"]["leaks"])
    assert plain["kube-proxy-dnat", "none"]["leaks"]
    assert not plain["kube-proxy-dnat", "drop-prerouting"]["leaks"]


def test_old_segment_is_not_invalid_on_this_kernel(
    plain: dict[tuple[str, str], dict[str, Any]],
) -> None:
    if not RUNNING_KERNEL.old_segments_pass:
        pytest.skip("this kernel is older than 6.1")
    for mitigation in WITHOUT_GUARD:
        assert plain["late-retransmission", mitigation]["invalid"] == 0


@pytest.mark.parametrize("mitigation", [m for m in WITHOUT_GUARD if m is not Mitigation.NONE])
def test_every_blunt_mitigation_fails_somewhere(
    plain: dict[tuple[str, str], dict[str, Any]], mitigation: Mitigation
) -> None:
    outcomes = {plain[scenario, mitigation]["outcome"] for scenario in SCENARIOS}
    assert outcomes - {"survived"}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=str)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_tables_are_total_and_the_guard_saves_everything(
    scenario: Scenario, kernel: KernelRules
) -> None:
    expected = scenario.expected(kernel)
    assert set(expected) == set(Mitigation)
    assert expected[Mitigation.GUARD].outcome is Outcome.SURVIVED
    assert expected[Mitigation.GUARD_DRY_RUN].outcome is expected[Mitigation.NONE].outcome
    assert all(each.why for each in expected.values())
