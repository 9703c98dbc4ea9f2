# SPDX-License-Identifier: MIT
"""Rules that a packet can never meet: no mistakes, but hardly what somebody wanted."""

from typing import Final, NamedTuple

from nfq_guard.conntrack.kernel_rules import KernelRules
from nfq_guard.finding import BOUNDS, Reason
from nfq_guard.flow import PROTO_TCP, PROTO_UDP
from nfq_guard.policy.fields import FAMILIES, FIELD_BY_NAME, IPV6_BASE, REASONS
from nfq_guard.policy.model import PolicyModel, Rule
from nfq_guard.policy.reach import Shape, shadowing
from nfq_guard.policy.spans import ABSENT, Spans, from_intervals, holds, intersection
from nfq_guard.policy.values import one_of


class Caution(NamedTuple):
    """Something that `check` points out.

    Attributes:
        key: Path of the rule, such as `policy.rule[2]`.
        source: File or preset that the rule stands in.
        rule: Its name.
        text: What about it, a sentence without its end.
    """

    key: str
    source: str
    rule: str
    text: str

    def __str__(self) -> str:
        """As `check` prints it, after the name of the file."""
        return f"{self.key} ({self.rule}): {self.text}"


def cautions(model: PolicyModel, kernel: KernelRules) -> list[Caution]:
    """What is suspicious in `model` on hosts of the generation `kernel`, in the order of rules."""
    found: list[Caution] = []
    shapes: list[Shape] = []
    for rule in model.rules:
        shape = Shape(rule)
        text = _never(shape, shapes, kernel)
        if text:
            found.append(Caution(rule.key, rule.source, rule.name, text))
        shapes.append(shape)
    return found


def _never(shape: Shape, earlier: list[Shape], kernel: KernelRules) -> str:
    if shape.contradiction:
        return f"can never match: its conditions on {shape.contradiction} contradict each other"
    contradiction = _cross_contradiction(shape)
    if contradiction:
        return f"can never match: {contradiction}"
    by = shadowing(shape, earlier)
    if by:
        every = "every packet" if len(by) == 1 else "together every packet"
        return f"can never match: {_called(by)} before it takes {every} that it names"
    possible = [reason for reason in REASONS if reason not in impossible_reasons(kernel)]
    if not any(holds(shape.span("reason"), REASONS.index(reason)) for reason in possible):
        return f"can never match: kernel {kernel.name} and its like never have these reasons"
    return ""


def impossible_reasons(kernel: KernelRules) -> frozenset[Reason]:
    """Reasons that kernels of this generation cannot have."""
    if kernel.old_segments_pass:
        return frozenset({Reason.SEQ_UNDER, Reason.ACK_UNDER})
    return frozenset()


_WITH_BOUND: Final = from_intervals(
    [(number, number) for number, reason in enumerate(REASONS) if reason in BOUNDS]
)
_WITH_PORTS: Final = from_intervals([(PROTO_TCP, PROTO_TCP), (PROTO_UDP, PROTO_UDP)])
_TCP: Final = from_intervals([(PROTO_TCP, PROTO_TCP)])
# A packet that has a number in the first field has one of these in the second.
_GO_TOGETHER: Final[tuple[tuple[str, str, Spans, str], ...]] = (
    ("distance", "reason", _WITH_BOUND, "a packet of these reasons has no distance"),
    ("tcp_flags", "proto", _TCP, "a packet of this protocol has no TCP flags"),
    ("payload", "proto", _WITH_PORTS, "payload is known of TCP and UDP only"),
    ("sport", "proto", _WITH_PORTS, "a packet of this protocol has no ports"),
    ("dport", "proto", _WITH_PORTS, "a packet of this protocol has no ports"),
)


def _cross_contradiction(shape: Shape) -> str:
    for name, other, together, text in _GO_TOGETHER:
        asks = not holds(shape.span(name), ABSENT)
        if asks and not intersection(shape.span(other), together):
            return text
    for end in ("src", "dst"):
        if holds(shape.span(end), ABSENT):
            continue
        for number, family in enumerate(FAMILIES):
            addresses = _ADDRESSES[family]
            others = intersection(shape.span("family"), (number, number + 1))
            if others == shape.span("family") and not intersection(shape.span(end), addresses):
                return f"{end} has no network of family {family}"
    return ""


_ADDRESSES: Final[dict[str, Spans]] = {
    FAMILIES[0]: (0, IPV6_BASE),
    FAMILIES[1]: (IPV6_BASE, FIELD_BY_NAME["src"].highest + 1),
}


def _called(rules: tuple[Rule, ...]) -> str:
    names = tuple(f"{rule.key} ({rule.name})" for rule in rules)
    return f"{'rule' if len(rules) == 1 else 'rules'} {one_of(names).replace(' or ', ' and ')}"
