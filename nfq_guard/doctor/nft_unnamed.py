# SPDX-License-Identifier: MIT
"""Chains without a name, `jump { ... }`, which nft's JSON has as text.

The text is read as far as a rule's verdict and the matches that do not depend on the packet; any
other match depends on it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, final

from nfq_guard.doctor.nft_match import Segment
from nfq_guard.doctor.rule_model import ALWAYS, NEVER, Condition, all_of, depends

_CHAIN: Final = re.compile(r"(?:(.*)\s)?(jump|goto) \{(.*)\}", re.DOTALL)
_NOISE: Final = re.compile(
    r'comment "[^"]*"|counter(?: packets \d+ bytes \d+| name \S+)?'
    r'|log(?: (?:prefix "[^"]*"|(?:level|group|snaplen|queue-threshold|flags) \S+))*'
)
_VERDICT: Final = re.compile(
    r"(?:(.*)\s)?(accept|drop|return|continue|(?:jump|goto) \S+|reject(?: with .*)?|queue(?: .*)?)",
    re.DOTALL,
)
_MATCH: Final = re.compile(
    r"(ct|meta) (state|l4proto|nfproto) (?:(!=|!|==) )?(\{[^}]*\}|(?!&|and|vmap)[\w,]+)(?:\s+|$)"
)


@final
class Line(NamedTuple):
    """A rule of such a chain.

    Attributes:
        text: The rule.
        when: Its matches.
        verdict: A verdict as in nft's JSON; the text of one that cannot be followed, and of a chain
            without a name; None for a rule without one.
    """

    text: str
    when: Condition
    verdict: Mapping[str, Any] | str | None


def chain_in(statement: str) -> tuple[str, str] | None:
    """`jump` or `goto` with the text of the chain; None if it is another statement."""
    found = _CHAIN.fullmatch(statement.strip())
    return None if found is None else (found[2], found[3])


def lines(body: str, segment: Segment) -> Iterator[Line]:
    """The rules of a chain."""
    for text in _split(body):
        words = " ".join(text.split())
        nested = _CHAIN.fullmatch(text)
        if nested is not None:
            yield Line(words, _condition(nested[1], segment), f"{nested[2]} {{{nested[3]}}}")
            continue
        rest = _NOISE.sub(" ", text).strip()
        found = _VERDICT.fullmatch(rest)
        if " vmap " in rest:
            head = rest.partition(" vmap ")[0]
            yield Line(words, depends(words)._replace(state="ct state" in head), "vmap")
        elif found is None:
            yield Line(words, _condition(rest, segment), None)
        else:
            yield Line(words, _condition(found[1], segment), _verdict(found[2]))


def _split(body: str) -> Iterator[str]:
    """The rules, one a line unless braces are open."""
    depth = 0
    text = ""
    for line in body.splitlines():
        text += f"{line}\n"
        depth += line.count("{") - line.count("}")
        if depth == 0:
            if text.strip():
                yield text.strip()
            text = ""


def _condition(text: str | None, segment: Segment) -> Condition:
    rest = (text or "").strip()
    conditions = [ALWAYS]
    while (found := _MATCH.match(rest)) is not None:
        left = {found[1]: {"key": found[2]}}
        conditions.append(segment.matches(_match(left, found[3] or "", found[4])))
        rest = rest[found.end() :]
    if rest.startswith("ct ") and not rest.startswith("ct state "):
        conditions.append(NEVER)
    elif rest:
        condition = depends(" ".join(rest.split()))
        conditions.append(condition._replace(state="ct state " in rest))
    return all_of(conditions)


def _match(left: object, sign: str, values: str) -> dict[str, object]:
    """A match as in nft's JSON."""
    words = [word for word in re.split(r"[\s,{}]+", values) if word]
    if values.startswith("{"):
        return {"left": left, "op": sign or "==", "right": {"set": words}}
    right: object = words if len(words) > 1 else words[0]
    return {"left": left, "op": sign or ("in" if "ct" in str(left) else "=="), "right": right}


def _verdict(text: str) -> Mapping[str, Any] | str:
    word, _, rest = text.partition(" ")
    if word in {"accept", "drop", "return", "continue"}:
        return {word: None}
    if word in {"jump", "goto"}:
        return {word: {"target": rest}}
    if word == "reject":
        return {word: {"type": rest.removeprefix("with ")} if rest else None}
    return text
