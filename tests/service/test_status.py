# SPDX-License-Identifier: MIT
"""The status as a value, as JSON, and back."""

import json

import pytest

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.finding import Reason
from nfq_guard.policy.decision import Action
from nfq_guard.service.status import (
    PolicyFacts,
    Rates,
    ReloadStatus,
    decode,
    encode,
    queue_status,
    totals,
)
from nfq_guard.service.supervisor.workers import QueueState, WorkerState
from nfq_guard.telemetry.metrics import Stats
from tests.support.status import daemon_status


def state(number: int = 0) -> QueueState:
    return QueueState(queue_num=number, pid=9, state=WorkerState.SERVING, restarts=1, stats=Stats())


def test_counters_stand_beside_the_fields() -> None:
    """Scripts read `.queues[0].packets` and `.reloads`."""
    table = encode(daemon_status(counters={"reloads": 3}))
    assert table["reloads"] == 3
    assert table["queues"][0]["packets"] == 0
    assert "counters" not in table
    assert "counters" not in table["queues"][0]


def test_json_keys() -> None:
    """They are an interface."""
    table = encode(daemon_status(counters={"reloads": 0}))
    assert list(table) == [
        *("version", "pid", "mode", "since", "uptime_s", "config", "policy", "shadow", "evidence"),
        *(
            "evidence_reason",
            "fail_mode",
            "max_rate_pps",
            "rules",
            "raw_rules",
            "pods",
            "queues",
            "reasons",
            "actions",
            "decided_by",
        ),
        *("reloads", "last_reload", "last_error"),
    ]
    assert set(table["policy"]) == {"source", "hash", "rules", "restart_for"}
    assert set(table["rules"]) == {"state", "problem", "differences", "age_s"}
    own = {"queue", "state", "pid", "restarts", "packets_per_s", "waiting"}
    own |= {"offload_entries", "healed_flows"}
    assert set(table["queues"][0]) == own | set(Stats().counters)


def test_what_is_encoded_is_decoded() -> None:
    status = daemon_status(
        mode=Mode.ENFORCE,
        shadow=PolicyFacts(source="trial", digest="1", rules=3),
        reasons={"seq-over": {"drop": 2}},
        last_reload=ReloadStatus(at="now", mistakes=("a", "b")),
        last_error={"at": "now", "event": "reload_failed", "mistakes": ["a"]},
        queues=(queue_status(state(3), 2.5), queue_status(state(4), 0)),
    )
    assert decode(json.loads(json.dumps(encode(status)))) == status


def test_status_of_a_newer_daemon_is_readable() -> None:
    """Unknown numbers are counters, other unknown fields are skipped."""
    table = encode(daemon_status())
    table["news"] = "text"
    table["more"] = 5
    status = decode(table)
    assert status.count("more") == 5
    assert status.count("never counted") == 0


@pytest.mark.parametrize("message", ["pong", [], {}, {"queues": 3}, {"queues": [1]}])
def test_what_is_no_status_is_an_error(message: object) -> None:
    with pytest.raises(NfqGuardError, match="another version"):
        decode(message)


def test_rates_need_two_samples_and_forget_old_ones() -> None:
    rates = Rates()
    queue = state()
    assert rates.of(0) == 0
    rates.note([queue], 0)
    assert rates.of(0) == 0
    for second in range(1, 11):
        queue.stats.counters["packets"] += 30 if second > 5 else 1
        rates.note([queue], second)
    assert rates.of(0) == 30


def test_rates_without_time_between_samples() -> None:
    rates = Rates()
    for _ in range(2):
        rates.note([state()], 5)
    assert rates.of(0) == 0


def test_totals_sum_over_queues() -> None:
    queues = [state(0), state(1)]
    for queue in queues:
        queue.stats.judged[Reason.SEQ_OVER][Action.DROP] = 2
        queue.stats.rules["window"] = 2
    sums = totals(queues)
    assert sums.reasons == {"seq-over": {"drop": 4}}
    assert sums.actions["drop"] == 4
    assert set(sums.actions) == {action.value for action in Action}
    assert sums.rules == {"window": 4}
