# SPDX-License-Identifier: MIT
"""The words of the lab: what is tried against the packet, and what became of the connection."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from nfq_guard.lab.wiretap import Seen


class Mitigation(StrEnum):
    """What the router does about INVALID packets; the values are public API."""

    NONE = "none"
    BE_LIBERAL = "be_liberal"
    DROP_PREROUTING = "drop-prerouting"
    DROP_FORWARD = "drop-forward"
    DROP_INPUT = "drop-input"
    GUARD = "guard"
    GUARD_DRY_RUN = "guard-dry-run"


class Outcome(StrEnum):
    """What became of the connection, worst first; the values are public API.

    `blocked` is a connection that stands still because the mitigation dropped its packets,
    `stalled` one that stands still without that, `leaked` one that goes on although an address
    that translation hides was seen on the outer link.
    """

    RESET = "reset"
    BLOCKED = "blocked"
    STALLED = "stalled"
    LEAKED = "leaked"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a scenario should come to under one mitigation, and why."""

    outcome: Outcome
    why: str


Expectations = Mapping[Mitigation, Expectation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run, measured.

    Attributes:
        scenario: Its name.
        mitigation: What was tried.
        expected: What should have come of it.
        outcome: What came of it.
        why: The reason for `expected`.
        invalid: Packets that the router's kernel called INVALID, by its own count.
        queued: Of these, those that the guard judged.
        dropped: Packets that the mitigation dropped.
        would_drop: Packets that the guard let pass in dry-run and would have dropped.
        seconds: How long the run took.
        rst: Each RST seen on a link, as `link: source > destination`.
        leaks: Each untranslated source seen on the outer link.
        wire: What passed on the links from the first stray on, in order.
        events: What the guard said of the packets that it dropped or recorded.
    """

    scenario: str
    mitigation: Mitigation
    expected: Outcome
    outcome: Outcome
    why: str
    invalid: int
    queued: int
    dropped: int
    would_drop: int
    seconds: float
    rst: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    wire: tuple[Seen, ...] = field(default=(), repr=False)
    events: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def as_expected(self) -> bool:
        """Whether the run came out as it should."""
        return self.outcome is self.expected

    def record(self) -> dict[str, object]:
        """The JSON object of `lab run` and `lab matrix`, what was seen on the wire in it."""
        return {
            "scenario": self.scenario,
            "mitigation": self.mitigation.value,
            "expected": self.expected.value,
            "outcome": self.outcome.value,
            "invalid": self.invalid,
            "queued": self.queued,
            "dropped": self.dropped,
            "would_drop": self.would_drop,
            "seconds": round(self.seconds, 3),
            "rst": list(self.rst),
            "leaks": list(self.leaks),
            "why": self.why,
        }


GUARDED: Final = (Mitigation.GUARD, Mitigation.GUARD_DRY_RUN)
