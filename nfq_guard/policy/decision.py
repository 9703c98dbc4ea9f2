# SPDX-License-Identifier: MIT
"""The decision of a policy about one packet."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, final

from nfq_guard.finding import Finding
from nfq_guard.flow import FlowSnapshot
from nfq_guard.wire.packet import Malformed, Packet, Queued


class Action(StrEnum):
    """The action on a packet.

    `log` accepts and records it, `allow` accepts and counts it. `heal` drops it and disables
    conntrack's window check for its sender in this flow, so that the retransmission passes.
    """

    DROP = "drop"
    LOG = "log"
    ALLOW = "allow"
    HEAL = "heal"

    @property
    def drops(self) -> bool:
        """Whether the packet is dropped when the mode is enforce."""
        return self is Action.DROP or self is Action.HEAL


@final
@dataclass(init=False, slots=True)
class Decision:
    """The decision of one rule; made once when the policy is compiled, then shared.

    Attributes:
        action: What to do.
        rule: Name of the rule.
        mark: Packet mark to set with the verdict; None leaves it unchanged.
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
    """Ordered rules, compiled."""

    @property
    def shadow(self) -> "Policy | None":
        """A policy on trial, whose decisions are reported but never carried out."""

    def decide(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
    ) -> Decision:
        """The decision of the first rule that matches; `now`, monotonic seconds, is for rates."""
