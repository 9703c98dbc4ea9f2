# SPDX-License-Identifier: MIT
"""The view of `nfq-guard top` as lines of text, computed from the responses of the daemon.

`top_screen` draws the lines and reads the keys.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, final

from nfq_guard.cli.dump import event_line
from nfq_guard.engine import Mode
from nfq_guard.names import endpoint
from nfq_guard.service.status import QueueStatus, RulesState, Status
from nfq_guard.telemetry.palette import ACTION_STYLES, Style

Fields = dict[str, Any]
Line = tuple[str, tuple[Style, ...]]
Key = tuple[str, str, int, str, int]

# Rates are averages over this time: the daemon folds some seconds of a flow into one event.
_WINDOW_S: Final = 10.0
_SAMPLES_MAX: Final = 64
_QUEUES_SHOWN: Final = 4

_PLAIN: Final[tuple[Style, ...]] = ()


class Sort(Enum):
    """The order of flows, the largest value first."""

    LAST = "last seen"
    PACKETS = "packets"
    RATE = "rate"
    DISTANCE = "distance"

    @property
    def next(self) -> "Sort":
        """The next order, cyclically."""
        found = list(Sort)
        return found[(found.index(self) + 1) % len(found)]


@final
@dataclass(slots=True, kw_only=True)
class Choice:
    """What the user chose.

    Attributes:
        sort: The order of flows.
        pattern: Only flows whose line contains this text are shown.
        typing: Whether the pattern is being typed.
        paused: Whether updates are paused.
        selected: Index of the flow under the cursor.
        opened: The flow that is shown in detail; None for the table.
    """

    sort: Sort = Sort.LAST
    pattern: str = ""
    typing: bool = False
    paused: bool = False
    selected: int = 0
    opened: Key | None = None


@final
class Meter:
    """The rates at which counters grow, over the last `_WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._samples: dict[object, deque[tuple[float, int]]] = {}

    def note(self, numbers: dict[object, int], now: float) -> None:
        """Add a sample of all counters; those that are absent are forgotten."""
        kept: dict[object, deque[tuple[float, int]]] = {}
        for name, number in numbers.items():
            samples = self._samples.get(name)
            if samples is None or number < samples[-1][1]:
                samples = deque(maxlen=_SAMPLES_MAX)
            samples.append((now, number))
            while len(samples) > 2 and now - samples[1][0] >= _WINDOW_S:
                samples.popleft()
            kept[name] = samples
        self._samples = kept

    def rate(self, name: object) -> float | None:
        """Growth per second; None before there are two samples."""
        samples = self._samples.get(name)
        if samples is None or len(samples) < 2:
            return None
        (began, before), (ended, after) = samples[0], samples[-1]
        return (after - before) / (ended - began) if ended > began else None


@final
class View:
    """The last response of the daemon, with rates computed from earlier responses.

    Attributes:
        choice: What the user chose.
        problem: Why the last query failed; empty if it did not.
    """

    def __init__(self) -> None:
        self.choice = Choice()
        self.problem = ""
        self._status: Status | None = None
        self._flows: list[Fields] = []
        self._meter = Meter()

    def take(self, status: Status, flows: list[Fields], now: float) -> None:
        """Show a new response; `now` in monotonic seconds."""
        numbers: dict[object, int] = {
            reason: sum(by_action.values()) for reason, by_action in status.reasons.items()
        }
        numbers |= {key_of(flow): flow["packets"] for flow in flows}
        self._meter.note(numbers, now)
        self._status = status
        self._flows = flows
        self.problem = ""

    def flows(self) -> list[Fields]:
        """The flows of the table, in order."""
        pattern = self.choice.pattern.lower()
        found = [flow for flow in self._flows if pattern in self._row(flow).lower()]
        order: dict[Sort, Callable[[Fields], Any]] = {
            Sort.LAST: lambda flow: flow["last"],
            Sort.PACKETS: lambda flow: flow["packets"],
            Sort.RATE: lambda flow: self._meter.rate(key_of(flow)) or 0.0,
            Sort.DISTANCE: _distance,
        }
        found.sort(key=order[self.choice.sort], reverse=True)
        return found

    def lines(self, height: int) -> list[Line]:
        """At most `height` lines; a line may be wider than the screen."""
        if self._status is None:
            return [(self.problem or "waiting for the daemon", _PLAIN)]
        shown = self._head(self._status)
        opened = self.choice.opened
        flow = next((one for one in self._flows if key_of(one) == opened), None)
        room = max(1, height - len(shown) - 1)
        shown += self._table(room) if flow is None else self._alone(flow)[:room]
        shown = shown[: height - 1]
        shown += [("", _PLAIN)] * (height - 1 - len(shown))
        return [*shown, self._foot(alone=flow is not None)]

    def _head(self, status: Status) -> list[Line]:
        enforcing = status.mode is Mode.ENFORCE
        total = sum(queue.packets_per_s for queue in status.queues)
        policy = status.policy
        first = (
            f"nfq-guard {status.mode}   {total:.1f} packets/s   evidence {status.evidence}   "
            f"fail mode {status.fail_mode}   policy {policy.source} ({policy.digest[:8]})"
        )
        shown: list[Line] = [(first, (Style.BOLD, Style.GREEN if enforcing else Style.YELLOW))]
        shown += [_queue_line(queue) for queue in status.queues[:_QUEUES_SHOWN]]
        if len(status.queues) > _QUEUES_SHOWN:
            shown.append((f"and {len(status.queues) - _QUEUES_SHOWN} more queues", _PLAIN))
        if self.problem:
            shown.append((self.problem, (Style.RED,)))
        elif status.rules.state is RulesState.DIFFER:
            differences = "; ".join(status.rules.differences)
            shown.append((f"rules differ: {differences}", (Style.RED,)))
        reasons = sorted(status.reasons.items(), key=lambda pair: -sum(pair[1].values()))
        counts = [
            f"{reason} {sum(by_action.values())} ({_rate_text(self._meter.rate(reason))}/s)"
            for reason, by_action in reasons
        ]
        return [*shown, ("   ".join(counts) or "no INVALID packet so far", _PLAIN), ("", _PLAIN)]

    def _table(self, room: int) -> list[Line]:
        head = (
            f" {'LAST':<9}{'ACTION':<12}{'REASON':<16}{'DISTANCE':>11}{'PACKETS':>9}{'RATE':>8}"
            f"  {'FLOW':<44}{'STATE':<12}{'NAT':<8}RULE"
        )
        flows = self.flows()
        choice = self.choice
        choice.selected = max(0, min(choice.selected, len(flows) - 1))
        first = max(0, choice.selected - room + 2)
        shown: list[Line] = [(head, (Style.BOLD,))]
        for number, flow in enumerate(flows[first : first + room - 1], first):
            style = _action_style(flow["events"][-1])
            mark = ">" if number == choice.selected else " "
            shown.append((mark + self._row(flow), style))
        return shown

    def _row(self, flow: Fields) -> str:
        event = flow["events"][-1]
        breach = event["breach"]
        distance = "-" if breach is None else f"{breach['distance']}"
        would = "would " if event["would"] != event["verdict"] else ""
        ends = (
            f"{event['proto']} {endpoint(event['src'], event['sport'])} > "
            f"{endpoint(event['dst'], event['dport'])}"
        )
        return (
            f"{flow['last'][11:19]:<9}{would + event['action']:<12}{event['reason']:<16}"
            f"{distance:>11}{flow['packets']:>9}{_rate_text(self._meter.rate(key_of(flow))):>8}"
            f"  {ends:<44}{event['state'] or '-':<12}{event['nat']:<8}{event['rule']}"
        )

    def _alone(self, flow: Fields) -> list[Line]:
        event = flow["events"][-1]
        ends = (
            f"{endpoint(event['src'], event['sport'])} > {endpoint(event['dst'], event['dport'])}"
        )
        shown: list[Line] = [
            (f"{event['proto']} {ends}", (Style.BOLD,)),
            (
                f"{flow['packets']} packets since {flow['first']}, "
                f"state {event['state'] or '-'}, nat {event['nat']}, "
                f"{event['direction'] or 'unknown'} direction, evidence {event['evidence']}",
                _PLAIN,
            ),
        ]
        breach = event["breach"]
        if breach is not None:
            shown.append(
                (
                    f"{breach['bound']}: {breach['actual']} is {breach['distance']} bytes beyond "
                    f"{breach['limit']}, the last number that passes",
                    (Style.YELLOW,),
                )
            )
        shown.append(("", _PLAIN))
        for one in reversed(flow["events"]):
            style = _action_style(one)
            shown.append((event_line(one), style))
        return shown

    def _foot(self, *, alone: bool) -> Line:
        choice = self.choice
        if choice.typing:
            return (f"only flows with: {choice.pattern}_", (Style.BOLD,))
        words = ["q quit", "p resume" if choice.paused else "p pause"]
        if alone:
            words.append("enter back")
        else:
            words += [f"s sort by {choice.sort.next.value}", "/ filter", "enter open one flow"]
            words.append(f"by {choice.sort.value}")
            if choice.pattern:
                words.append(f"only {choice.pattern!r}")
        if choice.paused:
            words.append("PAUSED")
        return ("   ".join(words), (Style.CYAN,))


def _queue_line(queue: QueueStatus) -> Line:
    drops = queue.count("queue_full_drops") + queue.count("buffer_full_drops")
    restarts = f", restarted {queue.restarts}x" if queue.restarts else ""
    text = (
        f"queue {queue.queue} {queue.state}{restarts}: {queue.packets_per_s:.1f}/s, "
        f"{queue.count('packets')} in total, {queue.waiting} waiting, {drops} dropped by the kernel"
    )
    bad = queue.state != "serving" or drops
    return (text, (Style.RED,) if bad else _PLAIN)


def _action_style(event: Fields) -> tuple[Style, ...]:
    """The style of an action; none for `allow`, as most lines would be green otherwise."""
    style = ACTION_STYLES.get(event["action"], Style.GREEN)
    return _PLAIN if style is Style.GREEN else (style,)


def _rate_text(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"


def _distance(flow: Fields) -> int:
    breach = flow["events"][-1]["breach"]
    return -1 if breach is None else int(breach["distance"])


def key_of(flow: Fields) -> Key:
    """The key of a flow."""
    found = flow["flow"]
    return found["proto"], found["a"], found["a_port"], found["b"], found["b_port"]
