# SPDX-License-Identifier: MIT
"""Parses the values of a rule's keys, and composes the texts that mistakes share."""

import ipaddress
import re
from difflib import SequenceMatcher, get_close_matches
from typing import Final, assert_never

from nfq_guard.policy.fields import LAST_MARK, Field, Kind
from nfq_guard.policy.intervals import IPV6_BASE
from nfq_guard.policy.model import Flags, Interval, MarkBits, Pattern, Value

RANGE_PATTERN: Final = r"([0-9]{1,12})\.\.([0-9]{1,12})?|\.\.([0-9]{1,12})"
"""A range of numbers, in the syntax that Python and JSON Schema share."""

_NUMBER_OR_MASK: Final = r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,12})"
MARK_PATTERN: Final = rf"{_NUMBER_OR_MASK}(?:/{_NUMBER_OR_MASK})?"
"""A mark, or bits under a mask, in the same syntax."""

_RANGE: Final = re.compile(RANGE_PATTERN)
_OTHER_RANGE: Final = re.compile(r"([0-9]{1,12})\s*(?:-|:|\.\.\.)\s*([0-9]{1,12})")
_MARK: Final = re.compile(MARK_PATTERN)
_LONGEST_INTERFACE: Final = 15  # IFNAMSIZ without the terminating NUL
_LONGEST_SHOWN: Final = 60
_SHORT_WORD: Final = 4
_SHORT_WORD_RATIO: Final = 0.75
SUGGESTIONS_MAX: Final = 1000
"""Mistakes of a file after which an unknown key gets no suggestion: a search takes 0.1 ms."""

# The text that `suggestion` appends.
_SUGGESTED: Final = re.compile(r" \(did you mean (?P<quote>['\"])(?P<word>.*)(?P=quote)\?\)$")


class ValueProblem(Exception):  # noqa: N818 - never leaves the parser, which makes it a Mistake
    """A value that the key does not accept, with the accepted values and a suggestion."""

    def __init__(self, expected: str, hint: str = "") -> None:
        self.expected = expected
        self.hint = hint
        super().__init__(expected)


def shown(found: object) -> str:
    """A value of the file, short enough for one line of a message."""
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, dict):
        return "a table"
    if isinstance(found, list):
        return "a list" if found else "an empty list"
    text = repr(found) if isinstance(found, str) else str(found)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def suggestion(found: object, known: tuple[str, ...]) -> str:
    """` (did you mean 'x'?)` when `found` is close to one of `known`, else empty."""
    if not isinstance(found, str):
        return ""
    # Leading hyphens are common to all options, and are ignored.
    plain = found.strip().lower().replace("_", "-").replace(" ", "-").lstrip("-")
    folded = {word.lower().replace("_", "-").lstrip("-"): word for word in known}
    near = get_close_matches(plain, list(folded), n=3, cutoff=0.65)
    meant = next((word for word in near if _is_typo(plain, word)), None)
    return "" if meant is None else f" (did you mean {folded[meant]!r}?)"


def _is_typo(found: str, near: str) -> bool:
    """Whether a word is near enough to another: short words resemble each other by chance."""
    return (
        len(found) > _SHORT_WORD
        or sorted(found) == sorted(near)
        or SequenceMatcher(None, near, found).ratio() >= _SHORT_WORD_RATIO
    )


def split_suggestion(text: str) -> tuple[str, str]:
    """A text without the appended suggestion, and the suggested word."""
    found = _SUGGESTED.search(text)
    return (text, "") if found is None else (text[: found.start()], found["word"])


def one_of(words: tuple[str, ...], conjunction: str = "or") -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def parse_value(field: Field, item: object) -> Value:
    """Parse one value of `field`.

    Raises:
        ValueProblem: The field does not accept it.
    """
    match field.kind:
        case Kind.WORD | Kind.STATUS:
            return _word(field, item)
        case Kind.NUMBER:
            return _number(field, item)
        case Kind.FLAGS:
            return _flags(field, item)
        case Kind.NETWORK:
            return _network(item)
        case Kind.PATTERN:
            return _pattern(item)
        case Kind.MARK:
            return _mark(item)
        case Kind.SWITCH:
            if isinstance(item, bool):
                return Interval(text=shown(item), low=int(item), high=int(item))
            raise ValueProblem("true or false")
        case _:
            assert_never(field.kind)


def _word(field: Field, item: object) -> Interval:
    # TOML writes `family = 4` as a number.
    text = str(item) if isinstance(item, int) and not isinstance(item, bool) else item
    if not isinstance(text, str) or text not in field.words:
        raise ValueProblem(
            f"{'' if len(field.words) == 1 else 'one of '}{one_of(field.words)}",
            suggestion(item, field.words),
        )
    position = field.words.index(text)
    return Interval(text=text, low=position, high=position)


def _number(field: Field, item: object) -> Interval:
    named = f"{one_of(field.words)}, or " if field.words else ""
    example = "1024..65535" if field.highest > 255 else "1..5"
    expected = (
        f"{named}a number from {field.lowest} to {field.highest}, or a range such as '{example}'"
    )
    if isinstance(item, str) and item in field.words:
        number = field.numbers[field.words.index(item)]
        return Interval(text=item, low=number, high=number)
    if isinstance(item, int) and not isinstance(item, bool):
        low = high = item
    elif isinstance(item, str):
        low, high = _ends(field, item, expected)
    else:
        raise ValueProblem(expected)
    if low > high or low < field.lowest or high > field.highest:
        raise ValueProblem(expected)
    return Interval(text=str(item), low=low, high=high)


def _ends(field: Field, item: str, expected: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(item)
    if found is None:
        other = _OTHER_RANGE.fullmatch(item)
        hint = f" (did you mean '{other[1]}..{other[2]}'?)" if other else ""
        raise ValueProblem(expected, hint or suggestion(item, field.words))
    low = int(found[1]) if found[1] else field.lowest
    last = found[2] or found[3]
    high = int(last) if last else field.highest
    return low, high


def _flags(field: Field, item: object) -> Flags:
    expected = f"some of {one_of(field.words)}, with '!' before those that must be clear"
    if not isinstance(item, str) or not item.split():
        raise ValueProblem(expected)
    wanted = unwanted = 0
    for word in item.split():
        name = word.removeprefix("!")
        if name not in field.words:
            raise ValueProblem(expected, suggestion(name, field.words))
        bit = field.numbers[field.words.index(name)]
        if word == name:
            wanted |= bit
        else:
            unwanted |= bit
    if wanted & unwanted:
        raise ValueProblem("each flag either set or clear, not both")
    return Flags(text=" ".join(item.split()), wanted=wanted, unwanted=unwanted)


def _network(item: object) -> Interval:
    expected = "a network such as '10.0.0.0/8' or 'fd00::/8'"
    if not isinstance(item, str) or "%" in item:
        raise ValueProblem(expected)
    try:
        network = ipaddress.ip_network(item, strict=False)
    except ValueError:
        raise ValueProblem(expected) from None
    address, _, _ = item.partition("/")
    if ipaddress.ip_address(address) != network.network_address:
        raise ValueProblem(
            "a network whose address has no bits beyond its prefix",
            f" (did you mean '{network}'?)",
        )
    low = int(network.network_address) + (IPV6_BASE if network.version == 6 else 0)
    return Interval(text=item, low=low, high=low + network.num_addresses - 1)


def _pattern(item: object) -> Pattern:
    expected = "an interface name such as 'eth0' or 'cali*'"
    if not isinstance(item, str) or not item or any(c in "/:" or c.isspace() for c in item):
        raise ValueProblem(expected)
    if item.endswith("+"):
        # The notation of iptables for a prefix.
        raise ValueProblem(expected, f" (did you mean '{item[:-1]}*'?)")
    if len(item.replace("*", "")) > _LONGEST_INTERFACE:
        raise ValueProblem(f"a name of at most {_LONGEST_INTERFACE} characters")
    return Pattern(text=item)


def _mark(item: object) -> MarkBits:
    expected = "a 32-bit number, or bits under a mask such as '0x10/0xff'"
    if isinstance(item, int) and not isinstance(item, bool):
        bits, mask = item, LAST_MARK
        text = f"{item:#x}" if item >= 0 else str(item)
    else:
        found = _MARK.fullmatch(item) if isinstance(item, str) else None
        if found is None:
            raise ValueProblem(expected)
        text = found[0]
        bits = int(found[1], 0) if found[1].lower().startswith("0x") else int(found[1])
        mask = LAST_MARK
        if found[2]:
            mask = int(found[2], 0) if found[2].lower().startswith("0x") else int(found[2])
    if not 0 <= bits <= LAST_MARK or not 0 < mask <= LAST_MARK:
        raise ValueProblem(expected)
    if bits & ~mask:
        raise ValueProblem("bits within their mask")
    return MarkBits(text=text, bits=bits, mask=mask)
