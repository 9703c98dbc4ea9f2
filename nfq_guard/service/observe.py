# SPDX-License-Identifier: MIT
"""The state of a daemon at one moment, for the metrics and /healthz."""

import os
import platform
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from nfq_guard import __version__
from nfq_guard.flows.log_settings import SYSCTLS
from nfq_guard.nfqueue.counters import QUEUES
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import RawRulesStatus, ReloadStatus, RulesState, RulesStatus
from nfq_guard.service.supervisor.workers import QueueState, WorkerState
from nfq_guard.telemetry.exposition import Observed, ObservedQueue
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metric_table import Part

_VERIFIED: Final = frozenset({RulesState.CORRECT, RulesState.DIFFER})


def observed(
    now: float,
    *,
    settings: Settings,
    queues: list[QueueState],
    counters: dict[str, int],
    loaded: LoadedPolicy,
    rules: RulesStatus,
    raw_rules: RawRulesStatus,
    last_reload: ReloadStatus | None,
    events: EventLog,
) -> Observed:
    """The values of one scrape, which do not change afterwards.

    Args:
        now: Monotonic seconds.
        settings: The settings of the daemon.
        queues: Its queues.
        counters: Its own counters.
        loaded: The policy in force.
        rules: The result of the last check of the rules.
        raw_rules: The rules before conntrack.
        last_reload: The last reload.
        events: The log.
    """
    serving = sum(queue.state is WorkerState.SERVING for queue in queues)
    gauges = {"queues": float(len(queues)), "queues_serving": float(serving)}
    if rules.state in _VERIFIED:
        gauges["rules_in_place"] = float(rules.state is RulesState.CORRECT)
    if raw_rules.one_sided or not raw_rules.problems:
        gauges["one_sided_raw_rules"] = float(len(raw_rules.one_sided))
    gauges |= _conntrack()
    if last_reload is not None:
        ended = datetime.fromisoformat(last_reload.at).timestamp()
        gauges["last_reload_timestamp_seconds"] = ended
        gauges["last_reload_success"] = float(not last_reload.mistakes)
    infos = {
        "build_info": (__version__, platform.python_version()),
        "kernel_info": (os.uname().release,),
        "policy_info": (loaded.facts.source, loaded.facts.digest),
    }
    if loaded.shadow is not None:
        infos["shadow_policy_info"] = (loaded.shadow.source, loaded.shadow.digest)
    return Observed(
        at=now,
        queues=tuple(
            ObservedQueue(queue.queue_num, queue.pid, queue.stats.copy()) for queue in queues
        ),
        counters=counters,
        gauges=gauges,
        rules=loaded.rule_names,
        infos=infos,
        outputs={
            output.name: (output.sink.dropped, output.sink.errors) for output in events.outputs
        },
        parts=_parts(settings, loaded, gauges, last_reload),
        problems=tuple(_problems(queues, rules)),
    )


def _conntrack() -> dict[str, float]:
    """The fill level of conntrack's table; empty if it cannot be read."""
    try:
        count, limit = (
            float((SYSCTLS / name).read_text(encoding="ascii"))
            for name in ("nf_conntrack_count", "nf_conntrack_max")
        )
    except (OSError, ValueError):
        return {}
    return {"conntrack_entries": count, "conntrack_entries_max": limit}


def _parts(
    settings: Settings,
    loaded: LoadedPolicy,
    gauges: Mapping[str, float],
    last_reload: ReloadStatus | None,
) -> frozenset[Part]:
    has = {
        Part.SHADOW: loaded.shadow is not None,
        Part.OFFLOAD: settings.offload,
        Part.HEAL: loaded.heals,
        Part.PODS: bool(settings.pods_dir),
        Part.RATE_LIMIT: settings.max_rate_pps > 0,
        Part.KERNEL_DROP: settings.fail_mode == "kernel-drop",
        Part.WORKERS: len(settings.queue_numbers) > 1,
        Part.KERNEL_COUNTERS: os.access(QUEUES, os.R_OK),
        Part.CONNTRACK: "conntrack_entries" in gauges,
        Part.RULES: "rules_in_place" in gauges,
        Part.RAW_RULES: "one_sided_raw_rules" in gauges,
        Part.RELOAD: last_reload is not None,
    }
    return frozenset(part for part, there in has.items() if there)


def _problems(queues: list[QueueState], rules: RulesStatus) -> list[str]:
    found = [
        f"queue {queue.queue_num} is {queue.state.value}"
        for queue in queues
        if queue.state is not WorkerState.SERVING
    ]
    if rules.state is RulesState.DIFFER:
        found += [f"rules: {difference}" for difference in rules.differences]
    return found
