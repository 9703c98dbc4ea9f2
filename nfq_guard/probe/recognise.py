# SPDX-License-Identifier: MIT
"""Finds the generation of conntrack with these answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from nfq_guard.conntrack.kernel_rules import KERNELS, KernelRules
from nfq_guard.errors import UnavailableError
from nfq_guard.probe.questions import QUESTIONS

LIVE: Final = "live"
"""The name of rules that are no known generation."""


@final
@dataclass(frozen=True, slots=True)
class Recognised:
    """The rules that a kernel follows.

    Attributes:
        rules: A known generation, or rules named `LIVE`, composed from the answers.
        nearest: The generation with most of the answers.
        differences: The differences between the kernel and `nearest`; empty for a known generation.
        unexplained: Differences that no known generation has, and that `rules` therefore lacks.
    """

    rules: KernelRules
    nearest: KernelRules
    differences: tuple[str, ...]
    unexplained: tuple[str, ...]


def recognise(answers: Sequence[str]) -> Recognised:
    """Judge the answers to `QUESTIONS`, in their order.

    Raises:
        UnavailableError: An answer differs that is the same for every generation, so the probe is
            invalid.
    """
    asked = list(zip(QUESTIONS, answers, strict=True))
    for question, answer in asked:
        if not question.field and answer not in question.answers.values():
            raise UnavailableError(
                f"the probe does not work on this kernel: {question.differs} was judged "
                f"{answer!r}, expected {next(iter(question.answers.values()))!r}"
            )

    def agreeing(rules: KernelRules) -> int:
        return sum(question.answers[rules.name] == answer for question, answer in asked)

    nearest = max(KERNELS.values(), key=agreeing)
    changed: dict[str, bool] = {}
    differences: list[str] = []
    unexplained: list[str] = []
    for question, answer in asked:
        if question.answers[nearest.name] == answer:
            continue
        differences.append(question.differs)
        others = [name for name, theirs in question.answers.items() if theirs == answer]
        if others:
            changed[question.field] = getattr(KERNELS[others[-1]], question.field)
        elif answer == question.without:
            changed[question.field] = False
        else:
            unexplained.append(question.differs)
    if not differences:
        return Recognised(nearest, nearest, (), ())
    rules = replace(nearest, name=LIVE, **changed)
    return Recognised(rules, nearest, tuple(differences), tuple(unexplained))
