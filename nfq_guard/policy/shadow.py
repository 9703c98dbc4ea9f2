# SPDX-License-Identifier: MIT
"""A second policy that is asked about every packet and never obeyed."""

from dataclasses import dataclass
from enum import Enum
from typing import final

from nfq_guard.finding import Finding
from nfq_guard.flow import FlowSnapshot
from nfq_guard.policy.decision import Decision, Policy
from nfq_guard.wire.packet import Malformed, Packet, Queued


class Difference(Enum):
    """How two decisions differ."""

    ONLY_ACTING_DROPS = "only-acting-drops"
    ONLY_SHADOW_DROPS = "only-shadow-drops"
    OTHER = "other"


@final
@dataclass(init=False, slots=True)
class Disagreement:
    """One packet on which the shadow decides otherwise.

    Attributes:
        acting: What the acting policy says.
        shadow: What the shadow says.
        difference: How they differ; `OTHER` is another action or mark on a packet that both drop,
            or that both let pass.
    """

    acting: Decision
    shadow: Decision
    difference: Difference

    def __init__(self, acting: Decision, shadow: Decision, difference: Difference) -> None:
        self.acting = acting
        self.shadow = shadow
        self.difference = difference


@final
class Shadow:
    """Holds a policy on trial against the decisions of the acting one.

    Its rates count on their own: the acting policy never sees what the shadow counts.

    Attributes:
        policy: The one on trial.
    """

    def __init__(self, policy: Policy) -> None:
        """Try `policy`."""
        self.policy = policy

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
        shadow = self.policy.decide(queued, packet, snapshot, finding, now)
        if shadow.action is acting.action and shadow.mark == acting.mark:
            return None
        difference = Difference.OTHER
        if acting.drops and not shadow.drops:
            difference = Difference.ONLY_ACTING_DROPS
        elif shadow.drops and not acting.drops:
            difference = Difference.ONLY_SHADOW_DROPS
        return Disagreement(acting, shadow, difference)
