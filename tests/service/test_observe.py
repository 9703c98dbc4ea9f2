# SPDX-License-Identifier: MIT
"""The daemon's state in the metrics and in /healthz."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.engine import Mode
from nfq_guard.policy.default import default_policy
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.observe import observed
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import PolicyFacts, RawRulesStatus, ReloadStatus, RulesState
from nfq_guard.service.supervisor.workers import QueueState, WorkerState
from nfq_guard.telemetry.exposition import Observed
from nfq_guard.telemetry.log import EventLog, Output
from nfq_guard.telemetry.metric_table import Part
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from tests.support.status import rules_status

FACTS = PolicyFacts(source="preset:default", digest="0123", rules=7)


LOADED = LoadedPolicy(policy=default_policy(), facts=FACTS, mode=Mode.DRY_RUN)


def queue(number: int = 7, state: WorkerState = WorkerState.SERVING) -> QueueState:
    return QueueState(queue_num=number, pid=1, state=state, restarts=0, stats=Stats())


def seen(tmp_path: Path, **changes: Any) -> Observed:  # noqa: ANN401 - arguments of `observed`
    events = EventLog([Output(LineSink(tmp_path / "log"), name="journal")])
    given: dict[str, Any] = {
        "settings": Settings(),
        "queues": [queue()],
        "counters": {"reloads": 1},
        "loaded": LOADED,
        "rules": rules_status(RulesState.CORRECT),
        "raw_rules": RawRulesStatus(),
        "last_reload": None,
        "events": events,
    }
    found = observed(5.0, **(given | changes))
    events.close(0)
    return found


def test_a_healthy_daemon(tmp_path: Path) -> None:
    found = seen(tmp_path)
    assert (found.at, found.problems, found.counters) == (5.0, (), {"reloads": 1})
    assert found.outputs == {"journal": (0, 0)}
    assert found.infos["policy_info"] == ("preset:default", "0123")
    assert (found.gauges["queues"], found.gauges["queues_serving"]) == (1, 1)
    assert found.gauges["rules_in_place"] == 1
    assert not found.parts & {Part.SHADOW, Part.HEAL, Part.OFFLOAD, Part.WORKERS, Part.RELOAD}


def test_numbers_do_not_change_afterwards(tmp_path: Path) -> None:
    live = queue()
    found = seen(tmp_path, queues=[live])
    live.stats.counters["packets"] = 5
    assert found.queues[0].stats.counters["packets"] == 0


@pytest.mark.parametrize("state", [WorkerState.STUCK, WorkerState.DOWN, WorkerState.STARTING])
def test_a_queue_that_is_not_served(tmp_path: Path, state: WorkerState) -> None:
    found = seen(tmp_path, queues=[queue(), queue(8, state)])
    assert found.problems == (f"queue 8 is {state.value}",)
    assert (found.gauges["queues"], found.gauges["queues_serving"]) == (2, 1)


def test_missing_rules(tmp_path: Path) -> None:
    found = seen(tmp_path, rules=rules_status(RulesState.DIFFER, "IPv4: no jump", "IPv6: no jump"))
    assert found.problems == ("rules: IPv4: no jump", "rules: IPv6: no jump")
    assert found.gauges["rules_in_place"] == 0


@pytest.mark.parametrize("state", [RulesState.PENDING, RulesState.FOREIGN, RulesState.FORBIDDEN])
def test_rules_that_were_not_verified(tmp_path: Path, state: RulesState) -> None:
    """They have no value."""
    found = seen(tmp_path, rules=rules_status(state, "IPv4: no jump"))
    assert found.problems == ()
    assert "rules_in_place" not in found.gauges
    assert Part.RULES not in found.parts


def test_rules_before_conntrack(tmp_path: Path) -> None:
    """Rules that cannot be read are unknown; those that were found still count."""
    unread = RawRulesStatus(problems=("not read yet",))
    found = seen(tmp_path, raw_rules=unread)
    assert "one_sided_raw_rules" not in found.gauges
    assert Part.RAW_RULES not in found.parts
    for status in (unread, RawRulesStatus()):
        known = RawRulesStatus(one_sided=("r",), problems=status.problems)
        assert seen(tmp_path, raw_rules=known).gauges["one_sided_raw_rules"] == 1
    assert seen(tmp_path).gauges["one_sided_raw_rules"] == 0


def test_files_of_pods_have_series_where_they_are_read(tmp_path: Path) -> None:
    assert Part.PODS not in seen(tmp_path).parts
    assert Part.PODS in seen(tmp_path, settings=Settings(pods_dir="/var/lib/cni/results")).parts


@pytest.mark.parametrize(("mistakes", "success"), [((), 1), (("daemon.queue: ...",), 0)])
def test_the_last_reload(tmp_path: Path, mistakes: tuple[str, ...], success: int) -> None:
    last = ReloadStatus(at="2026-01-02T03:04:05.000000Z", mistakes=mistakes)
    found = seen(tmp_path, last_reload=last)
    assert found.gauges["last_reload_success"] == success
    assert found.gauges["last_reload_timestamp_seconds"] == 1_767_323_045
    assert Part.RELOAD in found.parts


def test_parts_of_a_daemon(tmp_path: Path) -> None:
    settings = Settings(offload=True, max_rate_pps=5, fail_mode="kernel-drop", queues="0-1")
    found = seen(tmp_path, settings=settings, loaded=replace(LOADED, shadow=FACTS, heals=True))
    expected = {
        Part.HEAL,
        Part.SHADOW,
        Part.OFFLOAD,
        Part.RATE_LIMIT,
        Part.KERNEL_DROP,
        Part.WORKERS,
    }
    assert expected <= found.parts
    assert found.infos["shadow_policy_info"] == ("preset:default", "0123")
