# SPDX-License-Identifier: MIT
"""Which rules before conntrack hide one direction of flows, by examples (kernel.md 2).

Each rule is tried with packets that it decides on. The answer to such a packet is treated in the
same way, where this host forwards it or where this host sends it, or the rule is one-sided. The
examples are at the ends of the ranges that rules name, where another rule begins to decide.

A condition that is known by its text only, such as a named set, holds for the answer if its mirror
image holds for the packet: `tcp sport @web` for `tcp dport @web`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Final

from nfq_guard.flow import FlowTuple, Hook, answering
from nfq_guard.raw_rules import (
    UNKNOWN_ZONE,
    Field,
    Match,
    Place,
    RawAct,
    RawRule,
    RawRules,
    Span,
    match_of,
    values_of,
)

# Addresses and ports of an example packet where the rules name none (RFC 5737, RFC 3849).
_EXAMPLE: Final = {
    4: (bytes((198, 51, 100, 1)), bytes((203, 0, 113, 1)), b"\x9c\x40", b"\x9c\x41"),
    6: (
        bytes.fromhex("20010db8") + bytes(12),
        bytes.fromhex("20010db8") + bytes(11) + b"\1",
        b"\x9c\x40",
        b"\x9c\x41",
    ),
}
_MIRRORED: Final = {
    Field.SRC: Field.DST,
    Field.DST: Field.SRC,
    Field.SPORT: Field.DPORT,
    Field.DPORT: Field.SPORT,
}
_MOST_COMPARISONS: Final = 2_000_000
"""Comparisons with ranges, of all examples together: a few seconds at most."""
_FEWEST_EXAMPLES: Final = 16
_MOST_ENDS: Final = 64
"""Ranges of one condition whose ends are tried."""

_SELECTOR: Final = r"(?:ip6?|tcp|sctp|th) (?:[sd]addr|[sd]port)"
_NATIVE: Final = re.compile(rf"({_SELECTOR}(?: \. {_SELECTOR})*) (\S.*)", re.DOTALL)
_SET: Final = re.compile(r"((?:! )?--match-set \S+) (src|dst)")
_PORTS: Final = re.compile(r"(?:! )?--ports \S+")
_OTHER_END: Final = {
    "saddr": "daddr",
    "daddr": "saddr",
    "sport": "dport",
    "dport": "sport",
    "src": "dst",
    "dst": "src",
}


def one_sided(rules: Iterable[RawRule]) -> list[RawRule]:
    """The rules that no other rule makes complete.

    Rules for SYNs alone are left out: SYNPROXY needs them to be one-sided.
    """
    host = RawRules(rules)
    ranges = sum(1 + sum(len(span.within) for span in rule.spans) for rule in host.rules)
    most = max(_FEWEST_EXAMPLES, _MOST_COMPARISONS // max(1, ranges * len(host.rules)))
    return [
        rule
        for rule in host.rules
        if rule.act is not RawAct.END
        and not rule.opening
        and (
            rule.act is RawAct.QUEUE
            or any(_is_half(host, rule, way) for way in _examples(host, rule, most))
        )
    ]


def _is_half(host: RawRules, rule: RawRule, way: FlowTuple) -> bool:
    """Whether a rule decides on a packet, and not in the same way on the answer."""
    device = next((name for name, negated in rule.devices if not negated), None)
    place = Place(rule.hook, device, holds=frozenset(rule.others))
    fails: set[str] = set()
    values = values_of(way)
    for earlier in host.at(rule.family, rule.proto, rule.hook):
        if earlier is rule:
            break
        match = match_of(earlier, values, place)
        if earlier.act is not RawAct.TRACKING and earlier.chain != rule.chain:
            continue
        if match is Match.YES:
            return False
        if match is Match.MAY and len(earlier.others) == 1 and not earlier.devices:
            fails.update(earlier.others)
    back = answering(way)
    holds, missed = _mirror_images(rule.others), _mirror_images(fails)
    received = device if rule.hook == Hook.OUTPUT else None
    places = [Place(Hook.PREROUTING, received, holds=holds, fails=missed)]
    if rule.hook == Hook.PREROUTING:
        places.append(Place(Hook.OUTPUT, device, holds=holds, fails=missed))
    zones = [host.zones(rule.family, back, each) for each in places]
    return rule.zone == UNKNOWN_ZONE or not any(each == {rule.zone} for each in zones)


def _mirror_images(words: Iterable[str]) -> frozenset[str]:
    return frozenset(image for word in words if (image := _mirror_image(word)) is not None)


def _mirror_image(word: str) -> str | None:
    """The condition that the answer meets if a packet meets this one; None if that is not known."""
    if _PORTS.fullmatch(word):
        return word
    in_set = _SET.fullmatch(word)
    if in_set is not None:
        return f"{in_set[1]} {_OTHER_END[in_set[2]]}"
    native = _NATIVE.fullmatch(word)
    if native is None:
        return None
    swapped = re.sub(r"[sd](?:addr|port)\b", lambda each: _OTHER_END[each[0]], native[1])
    return f"{swapped} {native[2]}"


def _examples(host: RawRules, rule: RawRule, most: int) -> Iterator[FlowTuple]:
    """Packets that meet a rule's conditions on the header, and differ in the answers' fate."""
    own = _by_field(rule.spans)
    plain = _values(rule, own, own, {})
    if plain is None:
        return  # the conditions contradict one another
    seen: set[tuple[bytes, ...]] = set()
    for values in chain((plain,), islice(_variations(host, rule, own), most)):
        if values not in seen:
            seen.add(values)
            src, dst, sport, dport = values
            ports = int.from_bytes(sport, "big"), int.from_bytes(dport, "big")
            yield FlowTuple(rule.proto, src, dst, *ports)


def _variations(
    host: RawRules, rule: RawRule, own: Mapping[Field, Sequence[Span]]
) -> Iterator[tuple[bytes, ...]]:
    """Values with which the answer meets the conditions of another rule, or just misses one."""
    others = [
        other
        for hook in (Hook.PREROUTING, Hook.OUTPUT)
        for other in host.at(rule.family, rule.proto, hook)
    ]
    # Those that treat packets differently come first: the number of examples is limited.
    for other in sorted(others, key=lambda other: (other.act, other.zone) == (rule.act, rule.zone)):
        spans = _by_field(
            Span(_MIRRORED[span.field], span.within, span.negated) for span in other.spans
        )
        wanted = _joined(own, spans)
        meets = _values(rule, wanted, wanted, {})
        if meets is not None:
            yield meets
        for field in spans:
            rest = {**wanted, field: own.get(field, ())}
            for value in _ends(spans[field]):
                missed = any(not _holds(span, value) for span in spans[field])
                values = _values(rule, rest, wanted, {field: value}) if missed else None
                if values is not None:
                    yield values


def _values(
    rule: RawRule,
    spans: Mapping[Field, Sequence[Span]],
    ends: Mapping[Field, Sequence[Span]],
    given: Mapping[Field, bytes],
) -> tuple[bytes, ...] | None:
    """Values that meet all conditions, from the ends of their ranges; None if there are none."""
    chosen: list[bytes] = []
    for field in Field:
        wanted = spans.get(field, ())
        pool = [given[field]] if field in given else _candidates(rule, field, ends.get(field, ()))
        value = next((each for each in pool if all(_holds(span, each) for span in wanted)), None)
        if value is None:
            return None
        chosen.append(value)
    return tuple(chosen)


def _candidates(rule: RawRule, field: Field, spans: Iterable[Span]) -> Iterator[bytes]:
    """The example's value, and those on both sides of each end of a range."""
    plain = _EXAMPLE[rule.family][field]
    yield plain
    yield bytes(len(plain))
    yield from _ends(spans)


def _ends(spans: Iterable[Span]) -> Iterator[bytes]:
    """The values on both sides of each end of their ranges."""
    for span in spans:
        for low, high in span.within[:_MOST_ENDS]:
            first, last = int.from_bytes(low, "big"), int.from_bytes(high, "big")
            for number in dict.fromkeys((first, last, first - 1, last + 1)):
                if 0 <= number < 1 << 8 * len(low):
                    yield number.to_bytes(len(low), "big")


def _holds(span: Span, value: bytes) -> bool:
    return span.holds((value,) * len(Field))


def _by_field(spans: Iterable[Span]) -> dict[Field, list[Span]]:
    found: dict[Field, list[Span]] = {}
    for span in spans:
        found.setdefault(span.field, []).append(span)
    return found


def _joined(
    one: Mapping[Field, Sequence[Span]], other: Mapping[Field, Sequence[Span]]
) -> dict[Field, list[Span]]:
    return {
        field: [*one.get(field, ()), *other.get(field, ())] for field in one.keys() | other.keys()
    }
