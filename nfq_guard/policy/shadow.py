# SPDX-License-Identifier: MIT
"""A second policy that is asked about every packet and never obeyed."""

from dataclasses import dataclass
from typing import final

from nfq_guard.finding import Finding
from nfq_guard.flow import FlowSnapshot
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.wire.packet import Malformed, Packet, Queued


@final
@dataclass(init=False, slots=True)
class Disagreement:
    """One packet on which the shadow decides otherwise.

    Attributes:
        acting: What the acting policy says.
        shadow: What the shadow says.
        matters: Whether one would drop the packet and the other would not; else they differ in
            the action or the mark only.
    """

    acting: Decision
    shadow: Decision
    matters: bool

    def __init__(self, acting: Decision, shadow: Decision, matters: bool) -> None:  # noqa: FBT001 - positional on the packet path
        self.acting = acting
        self.shadow = shadow
        self.matters = matters


@final
class Shadow:
    """Holds a policy on trial against the decisions of the acting one.

    Its rates count on their own: the acting policy never sees what the shadow counts.

    Attributes:
        agreed: Packets on which both say the same.
        only_acting_drops: Packets that the acting policy alone drops.
        only_shadow_drops: Packets that the shadow alone would drop.
        other_differences: Packets with another action or mark, dropped by both or by neither.
    """

    def __init__(self, policy: Policy) -> None:
        """Try `policy`."""
        self._policy = policy
        self.agreed = 0
        self.only_acting_drops = 0
        self.only_shadow_drops = 0
        self.other_differences = 0

    def hold(
        self,
        queued: Queued,
        packet: Packet | Malformed,
        snapshot: FlowSnapshot | None,
        finding: Finding,
        now: float,
        acting: Decision,
    ) -> Disagreement | None:
        """Ask the shadow about a packet on which `acting` was decided; None when both agree.

        Rules of other names that come to the same are no disagreement.
        """
        shadow = self._policy.decide(queued, packet, snapshot, finding, now)
        if shadow.action is acting.action and shadow.mark == acting.mark:
            self.agreed += 1
            return None
        acting_drops = _drops(acting)
        shadow_drops = _drops(shadow)
        if acting_drops and not shadow_drops:
            self.only_acting_drops += 1
        elif shadow_drops and not acting_drops:
            self.only_shadow_drops += 1
        else:
            self.other_differences += 1
        return Disagreement(acting, shadow, acting_drops is not shadow_drops)


def _drops(decision: Decision) -> bool:
    return decision.action is Action.DROP or decision.action is Action.HEAL
