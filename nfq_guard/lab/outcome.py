# SPDX-License-Identifier: MIT
"""Mitigations, outcomes and results of the lab."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypedDict

from nfq_guard.flow import IPV4
from nfq_guard.lab.addresses import Family
from nfq_guard.lab.wiretap import Segment


class Mitigation(StrEnum):
    """The router's treatment of INVALID packets; the values are public API."""

    NONE = "none"
    BE_LIBERAL = "be_liberal"
    DROP_PREROUTING = "drop-prerouting"
    DROP_FORWARD = "drop-forward"
    DROP_INPUT = "drop-input"
    GUARD = "guard"
    GUARD_HEAL = "guard-heal"
    GUARD_DRY_RUN = "guard-dry-run"


class Outcome(StrEnum):
    """The fate of the connection, worst first; the values are public API.

    `blocked`: it hangs, and the mitigation dropped packets. `stalled`: it hangs, and the mitigation
    dropped nothing. `leaked`: it continues, but an address that translation hides was seen on the
    outer link.
    """

    RESET = "reset"
    BLOCKED = "blocked"
    STALLED = "stalled"
    LEAKED = "leaked"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected outcome of a scenario under one mitigation, and the reason."""

    outcome: Outcome
    why: str


Expectations = Mapping[Mitigation, Expectation]


class ResultRecord(TypedDict):
    """One run of a scenario.

    Attributes:
        scenario: Name of the scenario.
        mitigation: The mitigation.
        expected: The expected outcome.
        outcome: The measured outcome: `survived`, `reset`, `stalled`, `leaked` or `blocked`.
        invalid: Packets that the router's kernel counted as INVALID.
        queued: Of these, packets that the guard judged.
        dropped: Packets that the mitigation dropped.
        would_drop: Packets that the guard accepted in dry-run and would have dropped.
        seconds: Duration of the run.
        rst: Each RST captured on a link, as `link: source > destination`.
        leaks: Each segment captured on the outer link with a source that translation hides.
        why: The reason for `expected`.
        family: Of the addresses: 4 or 6.
    """

    scenario: str
    mitigation: str
    expected: str
    outcome: str
    invalid: int
    queued: int
    dropped: int
    would_drop: int
    seconds: float
    rst: list[str]
    leaks: list[str]
    why: str
    family: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The measured result of one run.

    Attributes:
        scenario: Name of the scenario.
        mitigation: The mitigation.
        expected: The expected outcome.
        outcome: The measured outcome.
        why: The reason for `expected`.
        invalid: Packets that the router's kernel counted as INVALID.
        queued: Of these, packets that the guard judged.
        dropped: Packets that the mitigation dropped.
        would_drop: Packets that the guard accepted in dry-run and would have dropped.
        seconds: Duration of the run.
        rst: Each RST captured on a link, as `link: source > destination`.
        leaks: Each segment captured on the outer link with a source that translation hides.
        wire: All segments captured from the first stray on, in order.
        events: The guard's `packet_judged` events.
        family: Of the addresses.
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
    wire: tuple[Segment, ...] = field(default=(), repr=False)
    events: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    family: Family = IPV4

    @property
    def as_expected(self) -> bool:
        """Whether the outcome is the expected one."""
        return self.outcome is self.expected

    def record(self) -> ResultRecord:
        """The JSON object of `lab run` and `lab matrix`."""
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
            "family": self.family,
        }


GUARDED: Final = (Mitigation.GUARD, Mitigation.GUARD_HEAL, Mitigation.GUARD_DRY_RUN)
ENFORCING: Final = (Mitigation.GUARD, Mitigation.GUARD_HEAL)
