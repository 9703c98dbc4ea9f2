# SPDX-License-Identifier: MIT
"""What `status` answers: one value from all parts of the daemon."""

from collections import deque
from typing import Final, final

from nfq_guard.policy.decision import Action
from nfq_guard.service.config import PolicyFacts
from nfq_guard.service.supervisor.workers import QueueState
from nfq_guard.telemetry.metrics import Stats

_SAMPLES: Final = 6


@final
class Rates:
    """Packets a second of each queue, over the last few seconds."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[float, int]]] = {}

    def note(self, queues: list[QueueState], now: float) -> None:
        """Take a sample; call it about once a second."""
        for queue in queues:
            samples = self._samples.setdefault(queue.queue_num, deque(maxlen=_SAMPLES))
            samples.append((now, queue.stats.counters["packets"]))

    def of(self, queue_num: int) -> float:
        """Packets a second; 0 before there are two samples."""
        samples = self._samples.get(queue_num)
        if not samples or len(samples) < 2:
            return 0.0
        (began, before), (ended, after) = samples[0], samples[-1]
        return round((after - before) / (ended - began), 1) if ended > began else 0.0


def policy_facts(told: PolicyFacts) -> dict[str, object]:
    """One policy of the answer."""
    return {"source": told.source, "hash": told.digest, "rules": told.rules}


def described(queue: QueueState, rate: float) -> dict[str, object]:
    """One queue of the answer."""
    counters = queue.stats.counters
    return {
        "queue": queue.queue_num,
        "state": queue.state.value,
        "pid": queue.pid,
        "restarts": queue.restarts,
        "packets_per_s": rate,
        "waiting": int(queue.stats.gauges["queue_waiting_packets"]),
        "offload_entries": int(queue.stats.gauges["offload_entries"]),
        **counters,
    }


def totals(
    queues: list[QueueState],
) -> tuple[dict[str, dict[str, int]], dict[str, int], dict[str, int]]:
    """Packets of all queues by reason and action, by action, and by rule.

    Reasons without packets are left out; every action is there.
    """
    reasons: dict[str, dict[str, int]] = {}
    actions = {action.value: 0 for action in Action}
    rules: dict[str, int] = {}
    for queue in queues:
        _add(queue.stats, reasons, actions, rules)
    return reasons, actions, rules


def _add(
    stats: Stats,
    reasons: dict[str, dict[str, int]],
    actions: dict[str, int],
    rules: dict[str, int],
) -> None:
    for reason, by_action in stats.judged.items():
        for action, packets in by_action.items():
            if packets:
                by_name = reasons.setdefault(reason.value, {})
                by_name[action.value] = by_name.get(action.value, 0) + packets
                actions[action.value] += packets
    for rule, packets in stats.rules.items():
        rules[rule] = rules.get(rule, 0) + packets
