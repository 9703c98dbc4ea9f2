# SPDX-License-Identifier: MIT
"""Parses chains without a name, `jump { ... }`, which nft's JSON contains as text.

A rule is translated as a whole where that is possible (`nft_words`). Of any other one only the
verdict, the writes to the packet's mark and the matches that do not depend on the packet are
parsed; any other match counts as depending on it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, final

from nfq_guard.doctor import nft_words
from nfq_guard.doctor.nft_match import Segment
from nfq_guard.doctor.rule_model import (
    ALWAYS,
    ANY_MARK,
    NO_ENTRY,
    Condition,
    MarkWrite,
    Truth,
    all_of,
    depends,
)

_CHAIN: Final = re.compile(r"(?:(.*?)\s)??(jump|goto) \{(.*)\}", re.DOTALL)
_NOISE: Final = re.compile(
    r'comment "[^"]*"|counter(?: packets \d+ bytes \d+| name \S+)?'
    r'|log(?: (?:prefix "[^"]*"|(?:level|group|snaplen|queue-threshold|flags) \S+))*'
    r"|ct \w+ set (?:meta mark|\w+)(?!\S)"
)
_VERDICT: Final = re.compile(
    r"(?:(.*)\s)?(accept|drop|return|continue|notrack|(?:jump|goto) \S+|reject(?: with .*)?"
    r"|(?:queue|synproxy|fwd)(?: .*)?)",
    re.DOTALL,
)
_STATE: Final = {"ct": {"key": "state"}}
_COUNTED: Final = re.compile(r"(counter) packets \d+ bytes \d+")
# Matches that stand alone: in a concatenation a dot is beside them, in a computation an operator.
_MATCH: Final = re.compile(
    r"(?<!\S)(?<!\. )"
    r"(?:(?P<kind>ct|meta) (?P<key>state|l4proto|nfproto|protocol)|(?P<name>[io]if(?:name)?)) "
    r'(?:(?P<sign>!=|!|==) )?(?P<values>\{[^}]*\}|"[^"]*"|(?!&|and |xor |or |vmap |set )[\w,]+)'
    r"(?!\S)(?! \.)"
)
_BITS: Final = r"\w+(?: \| \w+)*"
_MASKED: Final = re.compile(
    rf"(?<!\S)(?<!\. )ct state & (?:\((?P<mask>{_BITS})\)|(?P<bit>\w+)) "
    rf"(?P<sign>==|!=) (?P<values>{_BITS})(?!\S)"
)
_MAPPED: Final = re.compile(
    r"(?:(?P<before>.*)\s)?(?P<kind>ct|meta) (?P<key>state|l4proto|nfproto) "
    r"vmap \{(?P<pairs>[^{}]*)\}",
    re.DOTALL,
)
_HEADER: Final = re.compile(
    r"(?<!\S)(ip|ip6|udp|udplite|icmp|icmpv6|sctp|dccp|igmp|ah|esp|comp) (\w+)(?= )"
)
_NUMBER: Final = r"(?:0x[0-9a-f]+|\d+)"
_WRITE: Final = re.compile(
    rf"(?<!\S)meta mark set (?:(?P<plain>(?:meta mark|{_NUMBER})(?: [&|^] {_NUMBER})*)(?!\S)"
    r"|[^{}]* map \{[^{}]*\}|)"
)
_WRITES_ENTRY: Final = re.compile(r"meta mark set ct (?!state )")
_OF_ENTRY: Final = re.compile(r"(?<!\S)ct (?!state |count |\w+ set )")


@final
class Line(NamedTuple):
    """A rule of such a chain.

    Attributes:
        text: The rule.
        when: Its matches.
        verdict: A verdict as in nft's JSON; the text of an unknown verdict or of an unnamed chain;
            None for a rule without a verdict.
        mark: Its write to the packet's mark, in a line of its own before the verdict's.
    """

    text: str
    when: Condition
    verdict: Mapping[str, Any] | str | None
    mark: MarkWrite | None = None


@final
class Translated(NamedTuple):
    """A rule of such a chain of which all is translated.

    Attributes:
        text: The rule.
        expr: Its statements, as in nft's JSON.
    """

    text: str
    expr: Sequence[nft_words.Statement]


def chain_in(statement: str) -> tuple[str, str] | None:
    """`jump` or `goto` with the text of the chain; None for another statement."""
    found = _CHAIN.fullmatch(statement.strip())
    return None if found is None else (found[2], found[3])


def lines(body: str, segment: Segment) -> Iterator[Line | Translated]:
    """The rules of a chain."""
    for text in _split(body):
        words = _COUNTED.sub(r"\1", " ".join(text.split()))
        with suppress(nft_words.UntranslatedError):
            yield Translated(words, nft_words.statements(text))
            continue
        rest = _NOISE.sub(" ", text).strip()
        nested = _CHAIN.fullmatch(rest)
        yield from _writes(words, rest if nested is None else nested[1] or "", segment)
        if nested is not None:
            yield Line(words, _condition(nested[1], segment), f"{nested[2]} {{{nested[3]}}}")
            continue
        rest = _WRITE.sub(_unless_known, rest).strip()
        found = _VERDICT.fullmatch(rest)
        mapped = _MAPPED.fullmatch(rest)
        if mapped is not None:
            yield from _mapped(words, mapped, segment)
        elif " vmap " in rest:
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


def _writes(words: str, rest: str, segment: Segment) -> Iterator[Line]:
    """The writes to the mark; nft may list a match behind the write that depends on it."""
    whole = _condition(rest, segment)
    for found in _WRITE.finditer(rest):
        before = _condition(rest[: found.start()], segment)
        if _WRITES_ENTRY.match(rest, found.start()):
            before = NO_ENTRY
        elif whole.truth is not Truth.YES:
            before = all_of([before, depends(words)])
        yield Line(words, before, None, _write(found[0], segment))


def _write(text: str, segment: Segment) -> MarkWrite:
    with suppress(nft_words.UntranslatedError):
        for each in nft_words.statements(text):
            mangle = each.get("mangle") if isinstance(each, dict) else None
            if mangle is not None:
                return segment.writes(mangle)[1] or ANY_MARK
    return ANY_MARK


def _unless_known(write: re.Match[str]) -> str:
    """A write's text where its value depends on the packet, which may end the rule."""
    return " " if write["plain"] is not None else write[0]


def _condition(text: str | None, segment: Segment) -> Condition:
    rest = _WRITE.sub(_unless_known, text or "")
    conditions = [ALWAYS]
    for found in _MATCH.finditer(rest):
        key = {"key": found["key"] or found["name"]}
        own = {found["kind"] or "meta": key}
        conditions.append(segment.matches(_match(own, found["sign"] or "", found["values"])))
    for found in _MASKED.finditer(rest):
        mask = (found["mask"] or found["bit"]).split(" | ")
        left: object = {"&": [_STATE, {"|": mask}]}
        right = {"|": found["values"].split(" | ")}
        conditions.append(segment.matches({"left": left, "op": found["sign"], "right": right}))
    for found in _HEADER.finditer(rest):
        field = {"protocol": found[1], "field": found[2]}
        conditions.append(segment.has({"payload": field}))
    words = " ".join(_MASKED.sub("", _MATCH.sub("", rest)).split())
    if _OF_ENTRY.search(words):
        conditions.append(NO_ENTRY)
    elif words:
        condition = depends(words)
        conditions.append(condition._replace(state="ct state " in words))
    return all_of(conditions)


def _mapped(words: str, mapped: re.Match[str], segment: Segment) -> Iterator[Line]:
    """A rule that ends in a verdict map, once for each verdict."""
    before = _condition(mapped["before"], segment)
    pairs = [pair.partition(" : ") for pair in " ".join(mapped["pairs"].split()).split(", ")]
    data = {"set": [[key, {"verdict": verdict}] for key, _, verdict in pairs]}
    vmap = {"key": {mapped["kind"]: {"key": mapped["key"]}}, "data": data}
    for when, verdict in segment.maps(vmap):
        yield Line(words, all_of([before, when]), _verdict(verdict["verdict"]))


def _match(left: object, sign: str, values: str) -> dict[str, object]:
    """A match as in nft's JSON."""
    words = [word for word in re.split(r'[\s,{}"]+', values) if word]
    if values.startswith("{"):
        return {"left": left, "op": sign or "==", "right": {"set": words}}
    right: object = words if len(words) > 1 else words[0]
    return {"left": left, "op": sign or ("in" if "ct" in str(left) else "=="), "right": right}


def _verdict(text: str) -> Mapping[str, Any] | str:
    word, _, rest = text.partition(" ")
    if word in {"accept", "drop", "return", "continue", "notrack"}:
        return {word: None}
    if word in {"jump", "goto"}:
        return {word: {"target": rest}}
    if word == "reject":
        return {word: {"type": rest.removeprefix("with ")} if rest else None}
    return text
