# SPDX-License-Identifier: MIT
"""A hand-made status of a daemon."""

from typing import Any

import msgspec

from nfq_guard.engine import Mode
from nfq_guard.service.status import (
    ActingPolicy,
    QueueStatus,
    RawRulesStatus,
    RulesState,
    RulesStatus,
    Status,
)
from nfq_guard.telemetry.metrics import Stats


def queue_status(number: int = 0, state: str = "serving", **counters: int) -> QueueStatus:
    return QueueStatus(
        queue=number,
        state=state,
        pid=7,
        restarts=0,
        packets_per_s=2.0,
        waiting=0,
        offload_entries=0,
        healed_flows=0,
        counters={**Stats().counters, **counters},
    )


def rules_status(state: RulesState, *differences: str, problem: str = "") -> RulesStatus:
    return RulesStatus(state=state, problem=problem, differences=differences, age_s=3.0)


def daemon_status(**changes: Any) -> Status:  # noqa: ANN401 - any field of a status
    status = Status(
        version="1",
        pid=7,
        mode=Mode.DRY_RUN,
        since="2026-01-01T00:00:00.000000Z",
        uptime_s=90_061.0,
        config="/etc/x",
        policy=ActingPolicy(source="/etc/x", digest="0123456789abcdef", rules=2, restart_for=()),
        shadow=None,
        evidence="bpf",
        evidence_reason=None,
        fail_mode="open",
        max_rate_pps=0,
        rules=rules_status(RulesState.CORRECT),
        raw_rules=RawRulesStatus(),
        queues=(queue_status(),),
        reasons={},
        actions={"drop": 0, "log": 0, "allow": 0, "heal": 0},
        decided_by={},
        counters={"reloads": 0, "reload_failures": 0, "shed_packets": 0, "unjudged_drops": 0},
        last_reload=None,
        last_error=None,
    )
    return msgspec.structs.replace(status, **changes)
