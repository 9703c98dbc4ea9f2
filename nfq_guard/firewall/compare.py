# SPDX-License-Identifier: MIT
"""Compares the installed rules with the required ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

from nfq_guard.firewall.render import TableRules
from nfq_guard.firewall.saved import Saved, SavedTable, is_own, may_take_invalid, meaning, queues_of
from nfq_guard.firewall.spec import Backend, Family, Place

_QUEUES: Final = frozenset({"NFQUEUE", "QUEUE"})
"""Targets by which a program decides."""


class Kind(StrEnum):
    """Kinds of differences."""

    MISSING_CHAIN = "missing-chain"
    MISSING_JUMP = "missing-jump"
    CHANGED_JUMP = "changed-jump"
    DUPLICATE_JUMP = "duplicate-jump"
    JUMP_NOT_FIRST = "jump-not-first"
    JUMP_NOT_LAST = "jump-not-last"
    CHANGED_RULE = "changed-rule"
    MISSING_RULE = "missing-rule"
    EXTRA_RULE = "extra-rule"
    LEFTOVER = "leftover"
    TAKEN_BEFORE = "taken-before"
    POLICY_SKIPPED = "policy-skipped"
    DORMANT = "dormant"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference between the installed and the required rules.

    Attributes:
        kind: The kind.
        family: The family.
        backend: The backend; `nftables` for our native table.
        table: The table.
        chain: The chain.
        detail: One sentence with the expected and the actual state.
    """

    kind: Kind
    family: Family
    backend: Place
    table: str
    chain: str
    detail: str

    def __str__(self) -> str:
        """The difference as `rules verify` prints it."""
        where = f"IPv{self.family} {self.backend} {self.table}"
        if self.table.startswith("inet "):  # a table of nftables, for both families
            where = f"nft {self.table}"
        return f"{self.kind}: {f'{where} {self.chain}'.strip()}: {self.detail}"


def differences(
    wanted: tuple[TableRules, ...], live: Saved, family: Family, backend: Backend
) -> list[Difference]:
    """Every difference in one family of one backend; empty if there is none."""

    def named(kind: Kind, table: str, chain: str, detail: str) -> Difference:
        return Difference(
            kind=kind, family=family, backend=backend, table=table, chain=chain, detail=detail
        )

    found: list[Difference] = []
    for should in wanted:
        table = live.get(should.table, SavedTable(should.table))
        parts = (*_chain(should, table), *_jumps(should, table))
        found += [named(kind, should.table, chain, detail) for kind, chain, detail in parts]
    ours = {should.table: should.chain for should in wanted}
    for table in live.values():
        found += [
            named(Kind.LEFTOVER, table.name, chain, "no rule of this configuration needs it")
            for chain in table.own_chains()
            if chain != ours.get(table.name)
        ]
    return found


def remarks(
    wanted: tuple[TableRules, ...], live: Saved, family: Family, backend: Backend
) -> list[Difference]:
    """Other programs' rules in the chains of our jumps that affect the packets we see or accept."""
    found: list[Difference] = []
    for should in wanted:
        if not should.last:
            continue
        table = live.get(should.table, SavedTable(should.table))
        for place, _ in should.jumps:
            parts = (*_takers(should, table, place), *_policy(table, place))
            found += [
                Difference(
                    kind=kind,
                    family=family,
                    backend=backend,
                    table=should.table,
                    chain=place,
                    detail=detail,
                )
                for kind, detail in parts
            ]
    return found


def _takers(should: TableRules, table: SavedTable, place: str) -> Iterator[tuple[Kind, str]]:
    """Rules before our jump that end the chain for INVALID packets."""
    ours = {queue for rule in should.rules for queue in queues_of(rule)}
    for number, rule in enumerate(table.of(place), start=1):
        if rule.target == should.chain:
            return
        taker = table.taker(rule) if may_take_invalid(rule.text) else None
        if taker is None:
            continue
        queues = queues_of(taker.text)
        judged = ours.intersection(queues)
        if judged and len(judged) == len(queues):
            continue  # it leads to our queue, as our own rule does
        but = ", unless it gets to a queue of ours" if judged else ""
        if taker is rule:
            what, pronoun = f"rule {number} `{rule.text}`", "it"
        else:
            what = f"rule {number} leads to `{taker.text}` in chain {taker.chain}"
            pronoun = "that"
        if taker.target in _QUEUES:
            # NF_ACCEPT ends the base chain; NF_REPEAT starts it again.
            yield (
                Kind.TAKEN_BEFORE,
                f"{what}: of what {pronoun} matches{but}, packets that the program on the queue "
                "accepts are not judged; those that it repeats (NF_REPEAT) are, once they do not "
                "match",
            )
        else:
            ends = " ends the chain" if taker is rule else ""
            yield Kind.TAKEN_BEFORE, f"{what}{ends}: what {pronoun} matches is not judged"


def _policy(table: SavedTable, place: str) -> Iterator[tuple[Kind, str]]:
    policy = table.policies.get(place, "ACCEPT")
    if policy != "ACCEPT" and any(is_own(rule.target) for rule in table.of(place)):
        yield (
            Kind.POLICY_SKIPPED,
            f"the chain's policy {policy} does not apply to packets that we let pass",
        )


_Part = tuple[Kind, str, str]


def _chain(should: TableRules, table: SavedTable) -> Iterator[_Part]:
    if should.chain not in table.policies:
        yield Kind.MISSING_CHAIN, should.chain, "it is not there"
        return
    live = [rule.text for rule in table.of(should.chain)]
    for number, expected in enumerate(should.rules, start=1):
        if number > len(live):
            yield Kind.MISSING_RULE, should.chain, f"expected rule {number} `{expected}`"
        elif meaning(live[number - 1]) != meaning(expected):
            detail = f"rule {number}: expected `{expected}`, found `{live[number - 1]}`"
            yield Kind.CHANGED_RULE, should.chain, detail
    for number, text in enumerate(live[len(should.rules) :], start=len(should.rules) + 1):
        yield Kind.EXTRA_RULE, should.chain, f"rule {number} `{text}` does not belong there"


def _jumps(should: TableRules, table: SavedTable) -> Iterator[_Part]:
    places = {chain for chain, _ in should.jumps}
    for place, expected in should.jumps:
        rules = table.of(place)
        ours = [n for n, rule in enumerate(rules, start=1) if rule.target == should.chain]
        if not ours:
            yield Kind.MISSING_JUMP, place, f"expected `{expected}`, found no jump of ours"
            continue
        if len(ours) > 1:
            at = ", ".join(str(number) for number in ours)
            yield Kind.DUPLICATE_JUMP, place, f"expected one jump of ours, found rules {at}"
        first = rules[ours[0] - 1].text
        if meaning(first) != meaning(expected):
            yield Kind.CHANGED_JUMP, place, f"expected `{expected}`, found `{first}`"
        if not should.last and ours[0] != 1:
            before = rules[ours[0] - 2].text
            detail = f"rule {ours[0]}, behind `{before}`, which sees unjudged packets before us"
            yield Kind.JUMP_NOT_FIRST, place, detail
        skipped = [rule for rule in rules[ours[0] :] if rule.target != should.chain]
        if should.last and skipped:
            more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
            detail = f"rule {ours[0]}, before `{skipped[0].text}`{more}: queued packets skip it"
            yield Kind.JUMP_NOT_LAST, place, detail
    for rule in table.own_jumps():
        if rule.target == should.chain and rule.chain not in places:
            yield Kind.LEFTOVER, rule.chain, f"`{rule.text}` should not be there"
