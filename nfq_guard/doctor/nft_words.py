# SPDX-License-Identifier: MIT
"""Translates the text of an nftables rule into statements as in nft's JSON.

For rules that the JSON contains as text (`nft_unnamed`). Only what says something of an INVALID
segment is translated; a rule with anything else is not.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, final

from nfq_guard.doctor.nft_text import PLAIN

_TOKEN: Final = re.compile(r'"[^"]*"|\{(?:[^{}"]|"[^"]*"|\{[^{}]*\})*\}|\([^()]*\)|[^\s{}()]+')
_NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+")
_RANGE: Final = re.compile(r"(0x[0-9a-f]+|\d+)-(0x[0-9a-f]+|\d+)")
_META: Final = frozenset({"iif", "iifname", "oif", "oifname", "skuid", "skgid", "pkttype"})
_HEADERS: Final = frozenset(
    {"ip", "ip6", "tcp", "udp", "udplite", "th", "sctp", "dccp", "icmp", "icmpv6", "igmp", "ether"}
)
_OPERATORS: Final = frozenset({"==", "!=", "<", ">", "<=", ">="})
_BITS: Final = frozenset({"&", "|", "^"})
_LOG: Final = frozenset({"prefix", "level", "group", "snaplen", "queue-threshold", "flags"})
_ENDS_VALUE: Final = frozenset({"timeout", "limit", "counter", "comment", "quota", "expires", ":"})

Statement = dict[str, Any] | str


class UntranslatedError(Exception):
    """A rule has words that are not translated."""


def statements(text: str) -> list[Statement]:
    """The statements of a rule.

    Raises:
        UntranslatedError: A statement is not translated.
    """
    return _Rule(_TOKEN.findall(text)).read()


@final
class _Rule:
    """Reads the tokens of a rule."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def read(self) -> list[Statement]:
        """All statements; those without an effect are left out."""
        found: list[Statement] = []
        while self._at < len(self._tokens):
            statement = self._statement()
            if statement is not None:
                found.append(statement)
        return found

    def _next(self) -> str:
        if self._at == len(self._tokens):
            raise UntranslatedError
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _rest(self) -> list[str]:
        rest = list(self._tokens[self._at :])
        self._at = len(self._tokens)
        return rest

    def _statement(self) -> Statement | None:
        word = self._peek()
        if word in PLAIN:
            return {self._next(): None}
        if word in {"counter", "log", "comment"}:
            self._skip(self._next())
            return None
        if word in {"jump", "goto"}:
            verb, target = self._next(), self._next()
            return f"{verb} {target}" if target[0] == "{" else {verb: {"target": target}}
        if word in {"reject", "queue"}:
            return _last(self._next(), self._rest())
        if word in {"add", "update"}:
            return self._update(self._next())
        if word in {"limit", "quota"} or (word, self._peek(1)) == ("ct", "count"):
            return self._rate()
        return self._match()

    def _skip(self, word: str) -> None:
        if word == "comment":
            self._next()
        elif word == "log":
            while self._peek() in _LOG:
                self._at += 2
        elif self._peek() == "name":
            self._at += 2
        elif self._peek() == "packets":
            self._at += 4

    def _rate(self) -> dict[str, Any]:
        """A limit, a quota or a count, of which only the presence counts."""
        word = self._next()
        name = f"{word} {self._next()}" if word == "ct" else word
        while self._peek() in {"rate", "over", "until", "burst", "used"} or (
            self._peek()[:1].isdigit() or self._peek() in {"packets", "bytes", "kbytes", "mbytes"}
        ):
            self._at += 1
        return {name: {}}

    def _update(self, verb: str) -> dict[str, Any]:
        named, group = self._next(), self._next()
        inner = _TOKEN.findall(group.strip("{} "))
        end = next((n for n, word in enumerate(inner) if word in _ENDS_VALUE), len(inner))
        key = _Rule(inner[:end])
        elem = key._key()
        rates = [word for word in inner[end:] if word in {"limit", "quota"}]
        if key._at != end or named[0] != "@":
            raise UntranslatedError
        return {
            "set": {"op": verb, "elem": elem, "set": named, "stmt": [{word: {}} for word in rates]}
        }

    def _match(self) -> dict[str, Any]:
        left = self._key()
        word = self._peek()
        if word == "set":
            self._at += 1
            return {"mangle": {"key": left, "value": self._written()}}
        if word == "vmap":
            self._at += 1
            return {"vmap": {"key": left, "data": _data(self._next())}}
        if word in _BITS:
            left = self._computed(left)
            word = self._peek()
        sign = self._next() if word in _OPERATORS | {"!"} else ""
        right = self._value()
        state = left == {"ct": {"key": "state"}}
        listed = (isinstance(right, dict) and "set" in right) or str(right).startswith("@")
        implicit = "in" if state and not listed else "=="
        return {"match": {"left": left, "op": sign or implicit, "right": right}}

    def _key(self) -> Any:  # noqa: ANN401 - JSON
        parts = [self._part()]
        while self._peek() == ".":
            self._at += 1
            parts.append(self._part())
        return parts[0] if len(parts) == 1 else {"concat": parts}

    def _part(self) -> dict[str, Any]:
        word = self._next()
        if word in _META:
            return {"meta": {"key": word}}
        if word == "meta":
            return {"meta": {"key": self._next()}}
        if word == "ct":
            name = self._next()
            if name in {"original", "reply", "count", "helper"}:
                raise UntranslatedError
            return {"ct": {"key": name}}
        if word in _HEADERS and self._peek() != "option":
            return {"payload": {"protocol": word, "field": self._next()}}
        raise UntranslatedError

    def _computed(self, left: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """An expression with operators, which nft lists from left to right."""
        while self._peek() in _BITS:
            left = {self._next(): [left, self._number()]}
        return dict(left)

    def _number(self) -> Any:  # noqa: ANN401 - JSON
        word = self._next().strip("() ")
        words = [each.strip() for each in word.split("|")]
        values = [_value(each) for each in words]
        return values[0] if len(values) == 1 else values

    def _value(self) -> Any:  # noqa: ANN401 - JSON
        """What a match compares with; bits are joined by `|` or commas."""
        word = self._next()
        if word[0] == "{":
            return {"set": [_element(each) for each in _split(word)]}
        parts = [word]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._next())
        if len(parts) > 1:
            return {"|": [_value(each) for each in parts]}
        words = word.split(",")
        if word[0] != '"' and len(words) > 1:
            return [_value(each) for each in words]
        return _element(word)

    def _written(self) -> Any:  # noqa: ANN401 - JSON
        if _NUMBER.fullmatch(self._peek()):
            return int(self._next(), 0)
        if self._peek() not in {"ct", "meta", *_META, *_HEADERS}:
            return self._next()
        key = self._key()
        if self._peek() == "map":
            self._at += 1
            return {"map": {"key": key, "data": _data(self._next())}}
        return self._computed(key)


def _last(verb: str, rest: list[str]) -> dict[str, Any]:
    """A verdict with options, which ends a rule."""
    words = [word for word in rest if word != "comment" and word[0] != '"']
    if verb == "queue":
        flags = ["bypass"] if any("bypass" in word.split(",") for word in words) else []
        numbers = [word for word in words if word[0].isdigit()]
        return {verb: {"num": numbers[0] if numbers else 0, "flags": flags}}
    if words[:1] == ["with"] and len(words) > 1:
        kind = "tcp reset" if words[1:3] == ["tcp", "reset"] else words[1]
        return {verb: {"type": kind, "expr": words[-1]}}
    return {verb: None}


def _split(group: str) -> list[str]:
    """The elements of a set."""
    inner = group.strip()[1:-1]
    parts = re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', inner)
    return [each.strip() for each in parts if each.strip()]


def _data(word: str) -> Any:  # noqa: ANN401 - JSON
    """The pairs of a map, or its name."""
    if word[0] == "@":
        return word
    pairs = []
    for each in _split(word):
        key, colon, value = each.rpartition(" : ")
        verdict = value.split()
        if not colon or not verdict:
            raise UntranslatedError
        left: Any = "*" if key.strip() == "*" else _element(key.strip())
        pairs.append([left, _verdict(verdict)])
    return {"set": pairs}


def _verdict(words: list[str]) -> Any:  # noqa: ANN401 - JSON
    if words[0] in PLAIN:
        return {words[0]: None}
    if words[0] in {"jump", "goto"} and len(words) == 2:
        return {words[0]: {"target": words[1]}}
    return _value(words[0])


def _element(text: str) -> Any:  # noqa: ANN401 - JSON
    parts = [part.strip() for part in re.split(r" \. ", text)]
    if len(parts) > 1:
        return {"concat": [_element(part) for part in parts]}
    span = _RANGE.fullmatch(text)
    if span is not None:
        return {"range": [int(span[1], 0), int(span[2], 0)]}
    return _value(text)


def _value(word: str) -> Any:  # noqa: ANN401 - JSON
    return int(word, 0) if _NUMBER.fullmatch(word) else word.strip('"')
