# SPDX-License-Identifier: MIT
"""Translates the output of iptables-save for `follow`.

An INVALID packet has no conntrack entry attached, so the matches that need one fail, and
`CONNMARK --restore-mark` leaves the packet's mark alone.
"""

from collections.abc import Container, Iterator
from typing import Final, NamedTuple

from nfq_guard.doctor.rule_model import (
    ALL_BITS,
    ALWAYS,
    ANY_MARK,
    NEVER,
    NFT_SECURITY,
    NO_ENTRY,
    PRIORITIES,
    QUEUE_IS_READ,
    TCP,
    Act,
    BaseChain,
    Condition,
    MarkTest,
    MarkWrite,
    Rule,
    Table,
    TrackingWrite,
    Truth,
    all_of,
    depends,
    in_range,
    known,
)
from nfq_guard.firewall.saved import (
    NEED_ENTRY,
    NEED_ENTRY_UNLESS_NEGATED,
    Saved,
    SavedRule,
    SavedTable,
    is_own,
    split,
)
from nfq_guard.firewall.spec import Backend, Family
from nfq_guard.raw_rules import UNKNOWN_ZONE, UNTRACKED

_HOOKS: Final = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_STATES: Final = frozenset({"--ctstate", "--state"})
_ALWAYS: Final = frozenset({"--comment", "--nfacct-name"})
_PROTOCOLS: Final = frozenset(
    {"tcp", "udp", "udplite", "icmp", "icmp6", "sctp", "dccp", "ah", "esp", "comment"}
)
_WITHOUT_ENTRY: Final = {
    # Match modules that use the conntrack entry: their result without one, unless negated.
    **dict.fromkeys(NEED_ENTRY, NO_ENTRY),
    **dict.fromkeys(NEED_ENTRY_UNLESS_NEGATED),
}
_TARGETS: Final = {
    "ACCEPT": Act.ACCEPT,
    "DROP": Act.DROP,
    "REJECT": Act.REJECT,
    "RETURN": Act.RETURN,
    "NFQUEUE": Act.ELSEWHERE,
    "QUEUE": Act.ELSEWHERE,
    "TPROXY": Act.ELSEWHERE,
    "SYNPROXY": Act.ELSEWHERE,
    "TARPIT": Act.ELSEWHERE,
    "DELUDE": Act.RESET,
}
PASSING: Final = frozenset(
    {
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DNPT", "DSCP", "ECN"),
        *("HL", "HMARK", "IDLETIMER", "LED", "LOG", "MARK", "NFLOG", "NOTRACK", "RATEEST"),
        *("SECMARK", "SET", "SNPT", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG"),
    }
)
"""The targets after which the rules go on."""


class _Option(NamedTuple):
    """One option of a rule, such as `! --ctstate NEW` of the match module conntrack.

    Attributes:
        module: The match module.
        instance: The index of its `-m` in the rule: a module may occur more than once.
        name: The option's name.
        values: Its values.
        negated: Whether `!` precedes it.
    """

    module: str
    instance: int
    name: str
    values: tuple[str, ...]
    negated: bool

    def __str__(self) -> str:
        words = ("!", self.name) if self.negated else (self.name,)
        return " ".join((*words, *self.values))


def tables(saved: Saved, backend: Backend, family: Family, protocol: str = TCP) -> list[Table]:
    """The tables of one family in one backend, for a packet of one protocol."""
    return [_table(table, backend, family, protocol) for table in saved.values() if table.readable]


def _table(saved: SavedTable, backend: Backend, family: Family, protocol: str) -> Table:
    chains: dict[str, list[Rule]] = {name: [] for name in saved.policies}
    for rule in saved.rules:
        chains.setdefault(rule.chain, []).append(_rule(rule, saved, protocol))
    kind = "nat" if saved.name == "nat" else "filter"
    return Table(
        filter=str(backend),
        name=saved.name,
        family=int(family),
        chains={name: rules for name, rules in chains.items() if not is_own(name)},
        bases={
            name: BaseChain(
                _HOOKS[name], _priority(saved.name, backend), kind, denies=policy == "DROP"
            )
            for name, policy in saved.policies.items()
            if policy != "-" and name in _HOOKS
        },
    )


def _priority(table: str, backend: Backend) -> int:
    if table == "security" and backend is Backend.NFT:
        return NFT_SECURITY
    return PRIORITIES.get(table, 0)


def _rule(saved: SavedRule, table: SavedTable, protocol: str) -> Rule:
    matches, target = _options(saved.text)
    act, name = _act(target, table)
    return Rule(
        text=saved.text,
        when=all_of([condition(matches, protocol), *_bypass(target)]),
        act=act,
        target=name,
        mark=_mark(target),
        restores=_restored(target),
        fills=_fills(matches, target),
        tracking=_tracking(target),
        template=bool(target) and target[0].values in {("CT",), ("NOTRACK",)},
        redirects=bool(target) and target[0].values == ("DNPT",),
        own=is_own(name) or is_own(saved.chain),
    )


def condition(matches: list[_Option], protocol: str = TCP) -> Condition:
    """Whether an INVALID packet of a protocol matches."""
    stated = {option.instance for option in matches if option.name in _STATES}
    # `recent --set` always holds.
    hold = {option.instance for option in matches if _adds(option)}
    return all_of(
        ALWAYS
        if option.instance in hold
        or (
            option.module == "conntrack"
            and option.instance in stated
            and option.name not in _STATES
        )
        else _match(option, protocol)
        for option in matches
    )


def _match(option: _Option, protocol: str) -> Condition:
    """One match. Those of the module conntrack need an entry, except for the state."""
    if option.name in _STATES:
        named = option.values[0].split(",") if option.values else []
        holds, established = (
            (state in named) is not option.negated for state in ("INVALID", "ESTABLISHED")
        )
        only = named == ["INVALID"] and not option.negated
        return known(holds, established=established)._replace(only=only)
    if option.module == "conntrack":
        return NO_ENTRY
    if option.module in _WITHOUT_ENTRY:
        return _WITHOUT_ENTRY[option.module] or known(option.negated)
    if option.name in _ALWAYS:
        return ALWAYS
    plain = _plain(option, protocol)
    return plain.negated if option.negated else plain


def _plain(option: _Option, protocol: str) -> Condition:
    value = option.values[0] if option.values else ""
    if option.name == "-p":
        return known(value in {protocol, "all"})
    if option.name == "-i" and value == "lo":
        return NEVER
    if option.name == "-o" and value == "lo":
        return NEVER
    return Condition(Truth.DEPENDS, (str(option),), marks=_mark_tests(option))


def _mark_tests(option: _Option) -> tuple[MarkTest, ...]:
    """A match on the packet's mark as a test of its bits; empty for any other."""
    if (option.module, option.name) != ("mark", "--mark") or not option.values:
        return ()
    value, slash, mask = option.values[0].partition("/")
    bits = _number(mask) if slash else ALL_BITS
    return (MarkTest(bits, frozenset({_number(value)}), on=str(option)),)


def _options(text: str) -> tuple[list[_Option], list[_Option]]:
    """The matches, and the target with its options."""
    matches: list[_Option] = []
    target: list[_Option] = []
    for option in _split(text):
        if option.name in {"-j", "-g"} or target:
            target.append(option)
        else:
            matches.append(option)
    used = {option.instance for option in matches if option.name != "-m"}
    return [each for each in matches if each.name != "-m" or _asks(each, used)], target


def _asks(module: _Option, used: Container[int]) -> bool:
    """Whether `-m MODULE` without options is a match of its own, such as `-m socket`."""
    return module.instance not in used and module.module not in _PROTOCOLS


def _split(text: str) -> Iterator[_Option]:
    module, instance = "", 0
    current: list[str] = []
    negated = next_negated = False
    for word in [*split(text), "-"]:
        if word == "!":
            next_negated = True
        elif word.startswith("-") and not _is_value(word, current):
            if current:
                if current[0] == "-m":
                    module, instance = " ".join(current[1:]), instance + 1
                yield _Option(module, instance, current[0], tuple(current[1:]), negated)
            current, negated, next_negated = [word], next_negated, False
        else:
            current.append(word)


def _is_value(word: str, current: list[str]) -> bool:
    """Whether a word that begins with `-` is the value of the option before it."""
    return len(current) == 1 and current[0] in {"--comment", "--log-prefix"} and word != "-"


def _act(target: list[_Option], table: SavedTable) -> tuple[Act, str]:
    if not target or not target[0].values:
        return Act.GO_ON, ""
    name = target[0].values[0]
    if name in table.policies:
        return (Act.GOTO if target[0].name == "-g" else Act.JUMP), name
    if name == "REJECT" and "tcp-reset" in (_value(target, "--reject-with") or ""):
        return Act.RESET, ""
    if name in {"NFQUEUE", "QUEUE"}:
        queue = _value(target, "--queue-num") or _value(target, "--queue-balance") or "0"
        return Act.ELSEWHERE, f"queue {queue}"
    if name in _TARGETS:
        act = _TARGETS[name]
        return act, name if act is Act.ELSEWHERE else ""
    return (Act.GO_ON, "") if name in PASSING else (Act.UNKNOWN, name)


def _bypass(target: list[_Option]) -> list[Condition]:
    """The condition of a queue that lets packets pass while no program is bound to it."""
    bypass = any(option.name == "--queue-bypass" for option in target)
    return [depends(QUEUE_IS_READ)] if bypass else []


def _mark(target: list[_Option]) -> MarkWrite | None:
    """How a target writes the mark; the value of an ipset is not known."""
    values = target[0].values if target else ()
    if values == ("HMARK",):
        first = _number(_value(target, "--hmark-offset") or "0")
        return in_range(first, first + _number(_value(target, "--hmark-mod") or "0") - 1)
    if any(option.name == "--map-mark" for option in target):
        return ANY_MARK
    if values != ("MARK",):
        return None
    for option in target[1:]:
        value, slash, mask = (option.values[0] if option.values else "0").partition("/")
        number = _number(value)
        bits = _number(mask) if slash else ALL_BITS
        match option.name:
            case "--set-xmark":
                return MarkWrite(ALL_BITS & ~bits, number)
            case "--set-mark":
                return MarkWrite(ALL_BITS & ~(bits | number), number)
            case "--and-mark":
                return MarkWrite(number, 0)
            case "--or-mark":
                return MarkWrite(ALL_BITS & ~number, number)
            case "--xor-mark":
                return MarkWrite(ALL_BITS, number)
            case _:
                pass
    return None


def _restored(target: list[_Option]) -> int:
    """The bits of the mark that the target CONNMARK writes for a packet of a connection."""
    if not any(option.name == "--restore-mark" for option in target):
        return 0
    mask = _value(target, "--nfmask") or _value(target, "--mask")
    return ALL_BITS if mask is None else _number(mask)


def _tracking(target: list[_Option]) -> TrackingWrite | None:
    """How the targets CT and NOTRACK have conntrack treat the packet."""
    names = [option.name for option in target]
    values = target[0].values if target else ()
    if values == ("NOTRACK",) or (values == ("CT",) and "--notrack" in names):
        return TrackingWrite(UNTRACKED)
    if values != ("CT",):
        return None
    if "--zone-orig" in names:
        return TrackingWrite(0)  # replies stay in zone 0
    zone = _value(target, "--zone") or _value(target, "--zone-reply")
    if zone is None:
        return None
    return TrackingWrite(int(zone) if zone.isdecimal() else UNKNOWN_ZONE)


def _fills(matches: list[_Option], target: list[_Option]) -> str:
    """The match that holds once the match `recent --set` or the target SET has added the packet."""
    kept = {option.instance for option in matches if _adds(option)}
    for option in matches:
        if option.instance in kept and option.name == "--name":
            return str(option)
    for option in target:
        if option.name == "--add-set":
            return " ".join(("--match-set", *option.values))
    return ""


def _adds(option: _Option) -> bool:
    return (option.module, option.name) == ("recent", "--set")


def _value(options: list[_Option], name: str) -> str | None:
    return next((each.values[0] for each in options if each.name == name and each.values), None)


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
