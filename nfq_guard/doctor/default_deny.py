# SPDX-License-Identifier: MIT
"""Whether a rule takes the packets that remain once those of known connections are accepted.

Such a rule names no conntrack state, but takes INVALID packets of connections whose other packets
never get to it. A rule that is aimed at something else, such as a banned address, is none.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from functools import lru_cache
from typing import Final, NamedTuple, final

from nfq_guard.doctor.header_words import addresses, ports, split

Words = frozenset[str]
"""Conditions of a rule, as in `Condition.on`."""

_MOST: Final = 32
_OTHER: Final[Words] = frozenset({"other conditions"})
"""Stands for alternatives that name the header, of which there are too many."""
_EPHEMERAL: Final = 32768
"""The first port from which a host opens connections, by default."""
_INTERFACE: Final = re.compile(r"(! )?-[io] \S+|[io]if(name)?( \. [io]if(name)?)* (?!\. ).+")
_OPENING: Final = re.compile(
    r"--tcp-flags FIN,SYN,RST,ACK SYN|--syn"
    r"|\(?tcp flags & \(?fin[ ,|]+syn[ ,|]+rst[ ,|]+ack\)?\)? == syn"
)

_PART: Final = r"(?:(?:ip6?|tcp|udp|sctp|th) [a-z0-9]+|meta l4proto|[io]if(?:name)?)"
_CONCATENATION: Final = re.compile(
    rf"(?P<fields>{_PART}(?: \. {_PART})+) (?P<not>!= )?"
    r"(?P<values>\{ .+ \}|@\S+|\S+(?: \. \S+)+)"
)
_PROTOCOL: Final = frozenset({"l4proto", "nexthdr", "protocol"})
"""Fields that all these packets have in common."""


class _Field(Enum):
    IN = auto()
    OUT = auto()
    SOURCE = auto()
    DESTINATION = auto()
    SOURCE_PORT = auto()
    PORT = auto()
    FLAGS = auto()


_FIELDS: Final = {
    "-i": _Field.IN,
    "iif": _Field.IN,
    "iifname": _Field.IN,
    "-o": _Field.OUT,
    "oif": _Field.OUT,
    "oifname": _Field.OUT,
    "-s": _Field.SOURCE,
    "--src-range": _Field.SOURCE,
    "saddr": _Field.SOURCE,
    "-d": _Field.DESTINATION,
    "--dst-range": _Field.DESTINATION,
    "daddr": _Field.DESTINATION,
    "--sport": _Field.SOURCE_PORT,
    "--sports": _Field.SOURCE_PORT,
    "sport": _Field.SOURCE_PORT,
    "--dport": _Field.PORT,
    "--dports": _Field.PORT,
    "dport": _Field.PORT,
}
_OTHER_WAY: Final = {
    _Field.IN: _Field.OUT,
    _Field.OUT: _Field.IN,
    _Field.SOURCE: _Field.DESTINATION,
    _Field.DESTINATION: _Field.SOURCE,
    _Field.SOURCE_PORT: _Field.PORT,
    _Field.PORT: _Field.SOURCE_PORT,
}
_INTERFACES: Final = frozenset({_Field.IN, _Field.OUT})
_ADDRESSES: Final = frozenset({_Field.SOURCE, _Field.DESTINATION})


@final
class _Term(NamedTuple):
    """A condition on one field of the header, or on an interface.

    Attributes:
        field: The field.
        values: Intervals of it, both ends included; None if they are not known.
        names: Interfaces.
        negated: Whether all other values are meant.
    """

    field: _Field
    values: tuple[tuple[int, int], ...] | None = None
    names: frozenset[str] = frozenset()
    negated: bool = False


_EXCEPTION: Final = _Term(_Field.IN, negated=True)
"""All packets but some."""


def is_interface(word: str) -> bool:
    """Whether a condition names interfaces only."""
    return _INTERFACE.fullmatch(word) is not None


def is_of_header(word: str) -> bool:
    """Whether a condition is on a field of the header or on an interface."""
    return _terms(word) is not None


def bounded(conditions: Iterable[Words]) -> frozenset[Words]:
    """These alternatives, under which something is accepted; of too many, one for all packets."""
    found = frozenset(conditions)
    if len(found) <= _MOST:
        return found
    of_header = any(not all(map(is_interface, each)) for each in found)
    return frozenset({frozenset(), _OTHER} if of_header else {frozenset()})


def some(conditions: Iterable[Words]) -> frozenset[Words]:
    """Of too many of these alternatives, those with the fewest conditions."""
    found = frozenset(conditions)
    if len(found) <= _MOST:
        return found
    return frozenset(sorted(found, key=lambda each: (len(each), sorted(each)))[:_MOST])


def takes_the_rest(on: Iterable[str], known: frozenset[Words], other: frozenset[Words]) -> bool:
    """Whether a rule with these conditions takes what accepts before it have left.

    Args:
        on: Its conditions.
        known: The conditions under which packets of known connections are accepted before it.
        other: The conditions of accepts before it that ask for no conntrack entry.
    """
    if not known:
        return False
    words = frozenset(on)
    if not all(map(is_of_header, words)):
        return False  # for some other property
    before = [
        each
        for each in known
        if _together(words, each) and not any(accepted <= words | each for accepted in other)
    ]
    if not before:
        return False
    if all(map(_is_broad, _terms_of(words))):
        return True
    if any(not all(map(is_interface, each)) for each in before):
        return True  # some of what it names is accepted
    return any(_answers(words, each) for each in other)


def _is_broad(term: _Term) -> bool:
    """Whether connections are opened in spite of a rule that takes these packets."""
    if term.negated or term.field in _INTERFACES or term.field is _Field.SOURCE_PORT:
        return True
    if term.values is None or term.field is _Field.FLAGS:
        return False
    if term.field in _ADDRESSES:
        # A list of networks is one of unwanted networks.
        return len(term.values) == 1 and term.values[0][0] != term.values[0][1]
    return any(high >= _EPHEMERAL for _, high in term.values)


def _answers(words: Words, accepted: Words) -> bool:
    """Whether the answers to accepted packets may meet these conditions, on a common field."""
    opposite = [
        term._replace(field=_OTHER_WAY.get(term.field, term.field)) for term in _terms_of(accepted)
    ]
    mine = _terms_of(words)
    named = {term.field for term in mine} - _INTERFACES
    common = any(term.field in named for term in opposite)
    return common and not any(_apart(one, other) for one in mine for other in opposite)


def _together(words: Words, others: Words) -> bool:
    """Whether one packet may meet both."""
    theirs = _terms_of(others)
    return not any(_apart(one, other) for one in _terms_of(words) for other in theirs)


def _apart(one: _Term, other: _Term) -> bool:
    if one.field is not other.field or (one.negated and other.negated):
        return False
    if one.negated or other.negated:
        without, within = (one, other) if one.negated else (other, one)
        if one.field in _INTERFACES:
            return bool(within.names) and within.names <= without.names
        if without.values is None or within.values is None:
            return False
        return all(
            any(low <= start and end <= high for low, high in without.values)
            for start, end in within.values
        )
    if one.field in _INTERFACES:
        return not any(_same(a, b) for a in one.names for b in other.names)
    if one.values is None or other.values is None:
        return False
    return not any(
        low <= end and start <= high for low, high in one.values for start, end in other.values
    )


def _same(one: str, other: str) -> bool:
    """Whether an interface may have both names; a name with a wildcard ends in `+` or `*`."""
    if "@" in {one[:1], other[:1]}:
        return True  # a named set
    if one[-1:] in "+*" and other.startswith(one[:-1]):
        return True
    return one == other or (other[-1:] in "+*" and one.startswith(other[:-1]))


def _terms_of(words: Words) -> list[_Term]:
    return [term for word in words for term in _terms(word) or ()]


@lru_cache(maxsize=4096)
def _terms(word: str) -> tuple[_Term, ...] | None:
    """A condition; None for one on another property. A concatenation has a term for each field."""
    concatenated = _CONCATENATION.fullmatch(word)
    if concatenated is None:
        term = _term(word)
        return None if term is None else (term,)
    fields = [each.split()[-1] for each in concatenated["fields"].split(" . ")]
    if not _PROTOCOL.issuperset(set(fields) - set(_FIELDS)):
        return None
    if concatenated["not"]:
        return (_EXCEPTION,)
    values = concatenated["values"]
    rows = [[values] * len(fields)]
    if values[0] != "@":
        rows = [each.split(" . ") for each in values.strip("{ }").split(", ")]
    if any(len(row) != len(fields) for row in rows):
        return None
    columns = zip(fields, zip(*rows, strict=True), strict=True)
    return tuple(_of(_FIELDS[field], column) for field, column in columns if field in _FIELDS)


def _term(word: str) -> _Term | None:
    """A condition on one field; None for one on another property."""
    negated = word.startswith("! ")
    if _OPENING.fullmatch(word.removeprefix("! ")) or _OPENING.fullmatch(
        word.replace("!= syn", "== syn")
    ):
        return _Term(_Field.FLAGS, negated=negated or "!= syn" in word)
    parted = split(word)
    if parted is None:
        return _EXCEPTION if is_interface(word) else None
    negated = parted.negated
    if parted.name == "--match-set":
        field = _Field.DESTINATION if parted.more.startswith("dst") else _Field.SOURCE
        return _Term(field, negated=negated)
    field_of = _FIELDS.get(parted.name)
    if field_of is None:
        return None
    return _of(field_of, parted.parts, negated=negated)


def _of(field: _Field, parts: Iterable[str], *, negated: bool = False) -> _Term:
    """The condition that a field has one of some values."""
    if field in _INTERFACES:
        names = frozenset(part.strip('"') for part in parts)
        return _Term(field, names=names, negated=negated)
    try:
        values = tuple(_interval(field, part) for part in dict.fromkeys(parts))
    except ValueError:
        return _Term(field, negated=negated)  # a named set
    return _Term(field, values, negated=negated)


def _interval(field: _Field, part: str) -> tuple[int, int]:
    if field in _ADDRESSES:
        first, last = addresses(part)
        return int(first), int(last)
    return ports(part)
