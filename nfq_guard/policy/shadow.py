# SPDX-License-Identifier: MIT
"""Compares the decisions of a policy on trial with those of the acting one."""

from dataclasses import dataclass
from enum import Enum
from typing import final

from nfq_guard.policy.decision import Decision


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
            both drop or both accept.
    """

    acting: Decision
    shadow: Decision
    difference: Difference

    def __init__(self, acting: Decision, shadow: Decision, difference: Difference) -> None:
        self.acting = acting
        self.shadow = shadow
        self.difference = difference


def disagreement(acting: Decision, shadow: Decision) -> Disagreement | None:
    """The difference between `shadow` and `acting`; None if both have the same effect.

    The names of the rules are ignored.
    """
    if shadow.action is acting.action and shadow.mark == acting.mark:
        return None
    difference = Difference.OTHER
    if acting.drops and not shadow.drops:
        difference = Difference.ONLY_ACTING_DROPS
    elif shadow.drops and not acting.drops:
        difference = Difference.ONLY_SHADOW_DROPS
    return Disagreement(acting, shadow, difference)
