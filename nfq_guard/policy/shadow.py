# SPDX-License-Identifier: MIT
"""A policy on trial: it judges every packet beside the acting policy and is never carried out."""

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
    """One packet on which the two policies disagree.

    Attributes:
        acting: Decision of the acting policy.
        shadow: Decision of the policy on trial.
        difference: How they differ; `OTHER` is a different action or mark for a packet that
            both drop or both let pass.
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
    """Compares a policy on trial with the decisions of the acting policy.

    Each of the two counts its own rates.

    Attributes:
        policy: The policy on trial.
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
        """Judge a packet on which the acting policy decided `acting`; None when both agree.

        Rules with different names but the same action and mark agree.
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
