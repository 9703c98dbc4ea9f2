# SPDX-License-Identifier: MIT
"""Interface names with wildcards, and masked marks: conditions that are no sets of numbers."""

import re

from nfq_guard.policy.model import MarkBits, Pattern, Value


def name_regex(text: str) -> re.Pattern[str]:
    """The names that a pattern stands for; an absent name (the empty one) is never among them."""
    parts = re.split(r"([*?])", text)
    body = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in parts)
    return re.compile(rf"(?!$){body}", re.DOTALL)


def matches_name(pattern: Pattern, name: str) -> bool:
    """Whether `name` is one of those that `pattern` stands for."""
    return name_regex(pattern.text).fullmatch(name) is not None


def matches_mark(wanted: MarkBits, mark: int) -> bool:
    """Whether `mark`, or -1 where there is none, has the wanted bits."""
    return mark >= 0 and mark & wanted.mask == wanted.bits


def value_covers(outer: Value, inner: Value) -> bool:
    """Whether everything that `inner` stands for is certainly in `outer` too."""
    if isinstance(outer, MarkBits) and isinstance(inner, MarkBits):
        return not outer.mask & ~inner.mask and inner.bits & outer.mask == outer.bits
    if isinstance(outer, Pattern) and isinstance(inner, Pattern):
        if outer.text == inner.text:
            return True
        if "*" not in inner.text and "?" not in inner.text:
            return matches_name(outer, inner.text)
        prefix = outer.text[:-1]
        return (
            outer.text.endswith("*")
            and "*" not in prefix
            and "?" not in prefix
            and inner.text.startswith(prefix)
        )
    return False
