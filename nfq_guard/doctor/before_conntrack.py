# SPDX-License-Identifier: MIT
"""The rules of this host that run before conntrack, for `raw_rules` and for a check of the doctor.

Conditions on addresses, ports and interfaces are parsed from the texts in which `follow` names the
conditions of a rule. Any other condition makes a rule uncertain.
"""

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from nfq_guard.doctor import collect, host_rules, iptables_rules, nft_rules, own_queue, owners
from nfq_guard.doctor.check import Check, note, ok, warning
from nfq_guard.doctor.follow import Finding, Follower
from nfq_guard.doctor.header_words import addresses, ports, split
from nfq_guard.doctor.one_sided import one_sided
from nfq_guard.doctor.rule_model import (
    ENDS,
    INGRESS,
    Act,
    Table,
    Truth,
    runs_before_conntrack,
)
from nfq_guard.errors import NfqGuardError, PrivilegeError
from nfq_guard.firewall import BOTH_FAMILIES, Backend, Family, nft_query
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.firewall.saved import Saved
from nfq_guard.firewall.xtables import System, Xtables
from nfq_guard.flow import PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, Hook
from nfq_guard.raw_rules import (
    UNKNOWN_ZONE,
    Field,
    RawAct,
    RawReading,
    RawRule,
    Span,
    bounded,
)

# Protocols with packets that are INVALID if conntrack missed a part of their flow, by iptables'
# names.
_PROTOCOLS: Final = {
    4: {"tcp": PROTO_TCP, "icmp": PROTO_ICMP, "sctp": PROTO_SCTP},
    6: {"tcp": PROTO_TCP, "ipv6-icmp": PROTO_ICMPV6, "sctp": PROTO_SCTP},
}
_HOOKS: Final = {
    INGRESS: Hook.PREROUTING,
    "prerouting": Hook.PREROUTING,
    "output": Hook.OUTPUT,
}
_FIELDS: Final = {
    "-s": Field.SRC,
    "-d": Field.DST,
    "--src-range": Field.SRC,
    "--dst-range": Field.DST,
    "--sport": Field.SPORT,
    "--sports": Field.SPORT,
    "--dport": Field.DPORT,
    "--dports": Field.DPORT,
    "saddr": Field.SRC,
    "daddr": Field.DST,
    "sport": Field.SPORT,
    "dport": Field.DPORT,
}
_DEVICES: Final = frozenset({"-i", "-o", "iif", "iifname", "oif", "oifname"})
# SYN must be set and ACK is not asked for: the SYNs in front of SYNPROXY.
_OPENING: Final = re.compile(
    r"--tcp-flags \S+ (?!\S*ACK)(?:\w+,)*SYN(?:,\w+)*$|tcp flags syn$"
    r"|\(tcp flags & \(?(?:\w+[,| ]+)*syn(?:[,| ]+\w+)*\)?\) == syn$"
)
_LEGACY_NAMES: Final = {Family.IPV4: "ip_tables_names", Family.IPV6: "ip6_tables_names"}


def read(queues: Sequence[int], copy: LegacyCopy | None = None) -> RawReading:
    """The rules of this host that run before conntrack; reads other tables only if it must.

    Args:
        queues: Our queues.
        copy: The tables of legacy iptables, for a process that cannot run its programs.
    """
    saved: dict[tuple[Backend, Family], Saved] = {}
    problems: list[str] = []
    for backend in Backend:
        for family in BOTH_FAMILIES:
            programs = Xtables(System(), backend, family)
            try:
                if backend is Backend.LEGACY and copy is not None and copy.has(family):
                    tables = host_rules.of_copy(copy, family, problems, ["raw"])
                    saved[backend, family] = tables
                elif _has_raw(backend, family) and programs.missing() is None:
                    saved[backend, family] = programs.save("-t", "raw")
            except NfqGuardError as error:
                problems.append(str(error))
    native: list[nft_rules.Ruleset] = []
    with _noted(problems, "chains"):
        chains = collect.listed_by_nft("chains")
        early = [] if chains is None else nft_rules.Ruleset(chains).early()
        for family_name, name in early:
            listed = collect.listed_by_nft("table", family_name, name)
            if listed is not None:
                native.append(nft_rules.Ruleset(listed))
    rules = of(saved, native, queues, problems)
    return RawReading(rules, describe(rules), tuple(dict.fromkeys(problems)))


@contextmanager
def _noted(problems: list[str], what: str) -> Iterator[None]:
    """Turn an error in a listing of nft into a sentence."""
    try:
        yield
    except NfqGuardError as error:
        problems.append(str(error))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problems.append(f"nft list {what}: {error}")


def _has_raw(backend: Backend, family: Family) -> bool:
    """Whether there may be a table raw. Listing it with legacy iptables would create it.

    Raises:
        PrivilegeError: This user cannot read whether there is one.
    """
    if backend is Backend.NFT:
        return not nft_query.is_dormant("raw", int(family))
    names = collect.NET / _LEGACY_NAMES[family]
    if names.exists() and not os.access(names, os.R_OK):
        raise PrivilegeError(
            f"whether iptables-legacy has a raw table cannot be read ({names.name})"
        )
    return "raw" in collect.text(names).split()


def of(
    saved: dict[tuple[Backend, Family], Saved],
    native: Iterable[nft_rules.Ruleset],
    queues: Sequence[int],
    problems: list[str],
) -> tuple[RawRule, ...]:
    """The rules among these that run before conntrack.

    Args:
        saved: The tables of iptables, by backend and family.
        native: The tables of nft; one that cannot be translated is left out.
        queues: Our queues.
        problems: Gets a sentence for each of those.
    """
    rulesets = list(native)
    found: list[RawRule] = []
    for family, protocols in _PROTOCOLS.items():
        for word, number in protocols.items():
            tables: list[Table] = []
            for (backend, each), texts in saved.items():
                if int(each) == family:
                    tables += iptables_rules.tables(texts, backend, each, word)
            nft_word = "icmpv6" if word == "ipv6-icmp" else word
            for ruleset in rulesets:
                with _noted(problems, "ruleset"):
                    native_tables = ruleset.tables(protocol=nft_word)
                    tables += [one for one in native_tables if one.family == family]
            found += _of_tables(tables, family, number, queues)
    return bounded(found)


def _of_tables(
    tables: Sequence[Table], family: int, proto: int, queues: Sequence[int]
) -> Iterator[RawRule]:
    chains = [
        (base.hook != INGRESS, base.priority, table, chain, base.hook)
        for table in tables
        for chain, base in table.bases.items()
        if not table.own and runs_before_conntrack(base)
    ]
    for *_, table, chain, hook in sorted(chains, key=lambda each: each[:2]):
        returns = any(
            rule.act in {Act.RETURN, Act.GOTO} for rules in table.chains.values() for rule in rules
        )
        for finding in Follower(table).base(chain).findings:
            rule = _raw_rule(finding, family, proto, hook, queues, returns=returns)
            if rule is not None:
                yield rule


def _raw_rule(
    finding: Finding, family: int, proto: int, hook: str, queues: Sequence[int], *, returns: bool
) -> RawRule | None:
    rule = finding.rule
    zone = 0
    if rule.tracking is not None:
        act, zone = RawAct.TRACKING, rule.tracking.zone
    elif own_queue.leads_to(rule, queues):
        act = RawAct.QUEUE
    elif rule.act in ENDS:
        act = RawAct.END
    else:
        return None  # it writes the mark
    spans: list[Span] = []
    devices: list[tuple[str, bool]] = []
    others: list[str] = []
    certain = not (finding.spared and returns)
    opening = False
    if finding.truth is Truth.DEPENDS:
        for word in finding.on:
            read_word = _condition(word)
            if _OPENING.match(word):
                opening = True
                continue
            if isinstance(read_word, Span):
                spans.append(read_word)
            elif read_word is not None:
                devices.append(read_word)
            else:
                others.append(word)
    table = finding.table
    return RawRule(
        text=f"`{rule.text}` ({owners.place(finding)})",
        family=family,
        proto=proto,
        hook=_HOOKS[hook],
        chain=f"{table.filter} {table.name} {(finding.path or (finding.chain,))[-1]}",
        act=act,
        zone=zone,
        spans=tuple(spans),
        devices=tuple(devices),
        certain=certain and not others,
        opening=opening,
        others=tuple(others) if certain else (),
    )


def _condition(word: str) -> Span | tuple[str, bool] | None:
    """A condition on the header or the interface; None for any other."""
    parted = split(word)
    if parted is None or parted.more:
        return None
    if parted.name in _DEVICES:
        device = parted.parts[0].strip('"')
        plain = len(parted.parts) == 1 and "@" not in device and "*" not in device[:-1]
        return (device.replace("*", "+"), parted.negated) if plain else None
    field = _FIELDS.get(parted.name)
    if field is None:
        return None
    try:
        return Span(field, tuple(_interval(field, part) for part in parted.parts), parted.negated)
    except (ValueError, OverflowError):
        return None


def _interval(field: Field, part: str) -> tuple[bytes, bytes]:
    """The first and the last value of a range such as `10.0.0.0/8` or `80:90`."""
    if field in {Field.SRC, Field.DST}:
        first, last = addresses(part)
        return first.packed, last.packed
    low, high = ports(part)
    return low.to_bytes(2, "big"), high.to_bytes(2, "big")


def checks(reading: RawReading, *, translated: bool = False) -> Iterator[Check]:
    """Whether a rule before conntrack hides one half of the traffic.

    Args:
        reading: The rules before conntrack.
        translated: Whether a rule behind conntrack writes addresses: the other half then has
            others, by which a rule may hide it as well.
    """
    for text in reading.one_sided:
        severity = note if translated else warning
        unless = (
            ", unless a rule hides that one too, by its addresses before or behind the translation "
            "of tracking.stateless"
        )
        yield severity(
            "tracking.half",
            f"{text}: conntrack calls the visible half INVALID{unless if translated else ''}, and "
            "the daemon does not drop what it matches",
            owners.todo_untracked(text),
        )
    if not reading.one_sided:
        beyond = ", as far as the rules could be read" if reading.problems else ""
        yield ok(
            "tracking.half",
            f"no rule before conntrack hides one direction of flows from it{beyond}",
        )


def describe(rules: Iterable[RawRule]) -> tuple[str, ...]:
    """The one-sided rules, one sentence each."""
    return _described(tuple(rules))


@functools.lru_cache(maxsize=1)
def _described(rules: tuple[RawRule, ...]) -> tuple[str, ...]:
    """As `describe`; the daemon reads the same rules again and again."""
    return tuple(
        dict.fromkeys(
            f"{rule.text} {_effect(rule)}{'' if _is_sure(rule) else ' (it may)'}"
            for rule in one_sided(rules)
        )
    )


def _is_sure(rule: RawRule) -> bool:
    return rule.certain and rule.zone != UNKNOWN_ZONE


def _effect(rule: RawRule) -> str:
    if rule.act is RawAct.QUEUE:
        return "queues packets that conntrack has not seen yet"
    direction = "hides one direction of flows from conntrack"
    return direction if rule.zone < 0 else f"{direction}: their other direction is in another zone"
