# SPDX-License-Identifier: MIT
"""The view of `nfq-guard top` as lines of text, computed from the responses of the daemon.

`top_screen` draws the lines and reads the keys. Each line is a list of pieces with their styles;
colour marks what differs from the other flows, and what did harm.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, final

from nfq_guard.cli.top_detail import detail
from nfq_guard.cli.top_flow import (
    Fields,
    Key,
    action_text,
    distance_of,
    distance_text,
    ends_of,
    has_escaped,
    key_of,
    last_event,
    main_reason,
    reasons_text,
)
from nfq_guard.cli.top_layout import Line, Piece, cut, fitting, spaced, wrap
from nfq_guard.cli.top_rates import Meter
from nfq_guard.engine import Mode
from nfq_guard.names import counted
from nfq_guard.service.status import QueueStatus, RulesState, Status
from nfq_guard.telemetry.palette import Style

_QUEUES_SHOWN: Final = 4
_LEAST_WIDTH: Final = 20
# Width of the longest reason.
_LEAST_REASONS: Final = 14
# Minimum width besides the flow: the cursor, PACKETS, RATE, REASONS, and blanks.
_BESIDE_FLOW: Final = 1 + 1 + 7 + 1 + 6 + 1 + _LEAST_REASONS
# Below these sizes there is no sparkline.
_SPARK_WIDTH: Final = 60
# On a lower screen, the detail of a flow omits everything else except problems.
_TALL: Final = 40
_SPARK_HEIGHT: Final = 12
_SPARK_COLUMNS: Final = 60
_ASCII_BLOCKS: Final = " .:-=+*#%@"
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"

_HELP: Final = (
    "q        quit",
    "s        sort by the next column; v marks the one in use",
    "/        show only flows that contain a text; enter keeps it, escape drops it",
    "p space  pause and resume",
    "up down  move the cursor; also k and j",
    "enter    open the flow under the cursor, and close it again; also escape",
    "?        this help, and back",
    "",
    "PACKETS  INVALID packets that have events, RATE a second over the last three",
    "REASONS  why they are INVALID, the most frequent first",
    "RESETS   RSTs that answered a packet of the flow which had got through",
    "BYTES    how far the last one was beyond the bound that it broke",
    "",
    "yellow   differs from most of the flows",
    "red      a packet got through untranslated, or a reset was caused",
)


class Sort(Enum):
    """The order of flows, the largest value first."""

    PACKETS = "PACKETS"
    RATE = "RATE"
    RESETS = "RESETS"
    DISTANCE = "BYTES"
    LAST = "LAST"

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
        helping: Whether the help is shown.
        selected: Index of the flow under the cursor.
        opened: The flow that is shown in detail; None for the table.
    """

    sort: Sort = Sort.PACKETS
    pattern: str = ""
    typing: bool = False
    paused: bool = False
    helping: bool = False
    selected: int = 0
    opened: Key | None = None


class _Column(NamedTuple):
    """A column of the table.

    Attributes:
        head: Its heading.
        width: Characters; the column of flows and the last one take the rest.
        value: Returns the text for a flow.
        right: Whether it is aligned to the right.
    """

    head: str
    width: int
    value: Callable[[Fields], str]
    right: bool = False


@final
class View:
    """The last response of the daemon, with rates computed from earlier responses.

    Attributes:
        choice: What the user chose.
        problem: Why the last query failed; empty if it did not.
        blocks: Characters of the sparkline, from nothing to full.
    """

    def __init__(self, *, unicode: bool = True) -> None:
        """Start without a response; `unicode` tells whether the terminal shows block characters."""
        self.choice = Choice()
        self.problem = ""
        self.blocks = _BLOCKS if unicode else _ASCII_BLOCKS
        self._status: Status | None = None
        self._flows: list[Fields] = []
        self._meter = Meter()
        self._total: int | None = None
        # Time of the last packet of the last response, by the daemon's clock; empty without one.
        self._until: str | None = None
        self._growth: deque[int] = deque(maxlen=_SPARK_COLUMNS)

    def take(self, status: Status, flows: list[Fields], now: float) -> None:
        """Show a new response; `now` in monotonic seconds."""
        numbers: dict[object, int] = {
            reason: sum(by_action.values()) for reason, by_action in status.reasons.items()
        }
        total = sum(numbers.values())
        numbers |= {key_of(flow): flow["packets"] for flow in flows}
        numbers |= {queue.queue: queue.count("packets") for queue in status.queues}
        # A flow that the last response lacks, because others were more recent, has an earlier time.
        new = {
            key_of(flow)
            for flow in flows
            if self._until is not None and flow["first"] > self._until
        }
        self._meter.note(numbers, now, new | set(status.reasons))
        self._until = flows[0]["last"] if flows else ""
        if self._total is not None:
            self._growth.append(max(0, total - self._total))
        self._total = total
        self._status = status
        self._flows = flows
        self.problem = ""

    def flows(self) -> list[Fields]:
        """The flows of the table, in order."""
        pattern = self.choice.pattern.lower()
        found = [flow for flow in self._flows if pattern in self._words(flow)]
        order: dict[Sort, Callable[[Fields], Any]] = {
            Sort.LAST: lambda flow: flow["last"],
            Sort.PACKETS: lambda flow: flow["packets"],
            Sort.RATE: lambda flow: self._meter.rate(key_of(flow)) or 0.0,
            Sort.DISTANCE: distance_of,
            Sort.RESETS: lambda flow: flow["resets"],
        }
        found.sort(key=order[self.choice.sort], reverse=True)
        return found

    def lines(self, height: int, width: int) -> list[Line]:
        """At most `height` lines of at most `width` characters."""
        width = max(width, _LEAST_WIDTH)
        if self._status is None:
            return [[Piece((self.problem or "waiting for the daemon")[:width])]][:height]
        if self.choice.helping:
            shown: list[Line] = [[Piece(text)] for line in _HELP for text in wrap(line, width)]
            return cut([*shown[: height - 1], [Piece("? back   q quit", (Style.CYAN,))]], width)
        head = self._head(self._status, height, width)
        opened = self.choice.opened
        flow = next((one for one in self._flows if key_of(one) == opened), None)
        if flow is not None and height < _TALL:  # the rest of the screen shows that flow
            bad = [line for line in head[1:] if line and Style.RED in line[0].styles]
            head = [head[0], *bad, []]
        room = max(1, height - len(head) - 1)
        body = self._table(room, width) if flow is None else detail(flow, width)
        shown = [*head, *body[:room]][: height - 1]
        shown += [[] for _ in range(height - 1 - len(shown))]
        return cut([*shown, self._foot(alone=flow is not None)], width)

    def _head(self, status: Status, height: int, width: int) -> list[Line]:
        enforcing = status.mode is Mode.ENFORCE
        total = sum(map(self._queue_rate, status.queues))
        policy = status.policy
        mode = Piece(
            f"nfq-guard {status.mode}", (Style.BOLD, Style.GREEN if enforcing else Style.YELLOW)
        )
        parts = [
            f"{total:.1f} packets/s",
            f"evidence {status.evidence}",
            f"fail mode {status.fail_mode}",
            f"policy {policy.source} ({policy.digest[:8]})",
        ]
        shown: list[Line] = [[mode, *fitting(parts, width - len(mode.text))]]
        if width >= _SPARK_WIDTH and height >= _SPARK_HEIGHT:
            shown.append(self._sparkline(width))
        shown += [
            _queue_line(queue, self._queue_rate(queue), width)
            for queue in status.queues[:_QUEUES_SHOWN]
        ]
        if len(status.queues) > _QUEUES_SHOWN:
            shown.append([Piece(f"and {len(status.queues) - _QUEUES_SHOWN} more queues")])
        if self.problem:
            shown.append([Piece(self.problem, (Style.RED,))])
        elif status.rules.state is RulesState.DIFFER:
            differences = "; ".join(status.rules.differences)
            shown.append([Piece(f"rules differ: {differences}", (Style.RED,))])
        resets = sum(queue.count("caused_resets") for queue in status.queues)
        if resets:
            text = f"{counted(resets, 'reset')} answered an INVALID packet that had got through"
            shown.append([Piece(text, (Style.RED,))])
        reasons = sorted(status.reasons.items(), key=lambda pair: -sum(pair[1].values()))
        counts = [
            f"{reason} {sum(by_action.values())} ({_rate_text(self._meter.rate(reason))}/s)"
            for reason, by_action in reasons
        ]
        if not counts:
            shown.append([Piece("no INVALID packet so far")])
        else:
            shown.append([Piece(text) for text in spaced(counts, width, "and {} more")])
        return [*shown, []] if height >= _SPARK_HEIGHT else shown

    def _queue_rate(self, queue: QueueStatus) -> float:
        """The rate over the time of all rates; before the second response, the daemon's own."""
        rate = self._meter.rate(queue.queue)
        return queue.packets_per_s if rate is None else rate

    def _sparkline(self, width: int) -> Line:
        """INVALID packets of each update, the last one on the right."""
        columns = min(_SPARK_COLUMNS, width - 30)
        growth = list(self._growth)[-columns:]
        top = max(growth, default=0)
        scale = len(self.blocks) - 1
        bars = "".join(self.blocks[-(-number * scale // max(top, 1))] for number in growth)
        return [
            Piece("INVALID "),
            Piece(bars.rjust(columns), (Style.CYAN,)),
            Piece(f" at most {top} an update" if growth else " no second update yet"),
        ]

    def _columns(self, width: int, longest: int) -> list[_Column]:
        """The columns that fit, in their order on the screen; without FLOW if `longest` is 0."""
        packets = _Column("PACKETS", 7, lambda flow: str(flow["packets"]), right=True)
        rate = _Column(
            "RATE", 6, lambda flow: _rate_text(self._meter.rate(key_of(flow))), right=True
        )
        flow = [_Column("FLOW", max(longest, 10), ends_of)] if longest else []
        chosen = [*flow, packets, rate]
        left = width - 1 - sum(column.width + 1 for column in chosen) - _LEAST_REASONS
        extra = [
            _Column("RESETS", 7, lambda flow: str(flow["resets"] or "-"), right=True),
            _Column("ACTION", 10, action_text),
            _Column("LAST", 8, lambda flow: str(flow["last"])[11:19]),
            _Column("BYTES", 10, distance_text, right=True),
            _Column("STATE", 11, lambda flow: str(last_event(flow)["state"] or "-")),
            _Column("NAT", 7, lambda flow: str(last_event(flow)["nat"])),
            _Column("RULE", 14, lambda flow: str(last_event(flow)["rule"])),
        ]
        for column in extra:
            if left < column.width + 1:
                break
            left -= column.width + 1
            chosen.append(column)
        order = ("LAST", "FLOW", "PACKETS", "RATE", "RESETS", "ACTION", "BYTES", "STATE", "NAT")
        chosen.sort(key=lambda column: (*order, column.head).index(column.head))
        wide = max(_LEAST_REASONS + left, 5)
        return [*chosen, _Column("REASONS", wide, lambda flow: reasons_text(flow, wide))]

    def _table(self, room: int, width: int) -> list[Line]:
        flows = self.flows()
        choice = self.choice
        choice.selected = max(0, min(choice.selected, len(flows) - 1))
        longest = max((len(ends_of(flow)) for flow in flows), default=10)
        # A flow that is too long to fit beside its numbers has its own line above them.
        beside = longest + _BESIDE_FLOW <= width
        columns = self._columns(width, longest if beside else 0)
        usual = {
            column.head: Counter(column.value(flow) for flow in flows).most_common(1)[0][0]
            for column in columns
            if flows and column.head in {"ACTION", "STATE", "NAT", "RULE"}
        }
        usual["REASONS"] = Counter(map(main_reason, flows)).most_common(1)[0][0] if flows else ""
        shown = [self._heading(columns)]
        above = 0 if beside else width
        blocks = [
            list(_block(flow, columns, usual, above, selected=number == choice.selected))
            for number, flow in enumerate(flows)
        ]
        first = _first_shown([len(block) for block in blocks], choice.selected, room - 1)
        for block in blocks[first:]:
            shown += block
        return shown[:room]

    def _heading(self, columns: Sequence[_Column]) -> Line:
        pieces = [Piece(" ")]
        for column in columns:
            marked = column.head == self.choice.sort.value
            styles = (Style.BOLD, Style.CYAN) if marked else (Style.BOLD,)
            # The mark replaces the blank after the heading.
            text = column.head if column.right else f"{column.head}{'v' if marked else ''}"
            after = "v" if marked and column.right else " "
            pieces.append(Piece(_padded(text, column) + after, styles))
        return pieces

    def _words(self, flow: Fields) -> str:
        event = last_event(flow)
        return " ".join(
            (ends_of(flow), *flow["reasons"], str(event["state"]), event["nat"], event["rule"])
        ).lower()

    def _foot(self, *, alone: bool) -> Line:
        choice = self.choice
        if choice.typing:
            return [Piece(f"only flows with: {choice.pattern}_", (Style.BOLD,))]
        words = ["PAUSED"] if choice.paused else []
        words += ["q quit", "? help", "p resume" if choice.paused else "p pause"]
        if alone:
            words.append("enter back")
        else:
            words += [f"s sort ({choice.sort.value})", "/ filter", "enter open"]
            if choice.pattern:
                words.append(f"only {choice.pattern!r}")
        return [Piece("   ".join(words), (Style.CYAN,))]


def _block(
    flow: Fields,
    columns: Sequence[_Column],
    usual: dict[str, str],
    above: int,
    *,
    selected: bool,
) -> Iterator[Line]:
    """The lines of one flow in the table.

    Args:
        flow: The flow.
        columns: The columns.
        usual: The most frequent value of some columns.
        above: Width of the line for the flow's ends; 0 where these are in a column.
        selected: Whether the cursor is on the flow.
    """
    mark = Piece(">" if selected else " ", (Style.BOLD,))
    escaped = has_escaped(flow)
    if above:
        for text in wrap(ends_of(flow), above - 1):
            yield [mark, Piece(text, (Style.RED,) if escaped else ())]
            mark = Piece(" ")
    pieces = [mark]
    for column in columns:
        text = column.value(flow)
        styles: tuple[Style, ...] = ()
        if column.head == "FLOW" and escaped:
            styles = (Style.RED,)
        elif column.head == "RESETS" and flow["resets"]:
            styles = (Style.RED, Style.BOLD)
        elif column.head in usual:
            told = main_reason(flow) if column.head == "REASONS" else text
            styles = (Style.YELLOW,) if told != usual[column.head] else ()
        pieces.append(Piece(_padded(text, column), styles))
        pieces.append(Piece(" "))
    yield pieces


def _first_shown(heights: Sequence[int], selected: int, room: int) -> int:
    """The first flow on the screen, such that the selected one is completely visible."""
    first = 0
    while first < selected and sum(heights[first : selected + 1]) > room:
        first += 1
    return first


def _queue_line(queue: QueueStatus, rate: float, width: int) -> Line:
    """As much about a queue as fits, drops first."""
    drops = queue.count("queue_full_drops") + queue.count("buffer_full_drops")
    restarts = f", restarted {queue.restarts}x" if queue.restarts else ""
    parts = [f"{queue.count('packets')} in total"]
    if queue.healed_flows:
        parts.append(f"{counted(queue.healed_flows, 'flow')} healed")
    parts.append(f"{queue.waiting} waiting")
    parts.insert(0 if drops else len(parts), f"{drops} dropped by the kernel")
    text = f"queue {queue.queue} {queue.state}{restarts}: {rate:.1f}/s"
    for part in parts:
        if len(text) + len(part) + 2 > width:
            break
        text = f"{text}, {part}"
    bad = queue.state != "serving" or drops
    return [Piece(text, (Style.RED,) if bad else ())]


def _padded(text: str, column: _Column) -> str:
    text = text[: column.width]
    return text.rjust(column.width) if column.right else text.ljust(column.width)


def _rate_text(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"
