# SPDX-License-Identifier: MIT
"""What a policy answers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, final

from nfq_guard.finding import Finding
from nfq_guard.flow import FlowSnapshot
from nfq_guard.wire.packet import Malformed, Packet, Queued


class Action(StrEnum):
    """What a rule says: `log` accepts and always records, `allow` accepts and only counts."""

    DROP = "drop"
    LOG = "log"
    ALLOW = "allow"

    @property
    def drops(self) -> bool:
        """Whether the packet is dropped when the mode is enforce."""
        return self is Action.DROP


@final
@dataclass(init=False, slots=True)
class Decision:
    """The answer of one rule; made once when the policy is loaded, then shared.

    Attributes:
        action: What to do.
        rule: Name of the rule that said so.
        mark: Packet mark to set with the verdict; None leaves it alone.
        drops: `Action.drops` of `action`.
    """

    action: Action
    rule: str
    mark: int | None
    drops: bool

    def __init__(self, action: Action, rule: str, mark: int | None = None) -> None:
        self.action = action
        self.rule = rule
        self.mark = mark
        self.drops = action.drops


class Policy(Protocol):
    """Ordered rules, ready to be asked."""

    def decide(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
    ) -> Decision:
        """The first rule that matches; `now` in monotonic seconds is for rate limits."""
