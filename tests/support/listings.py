# SPDX-License-Identifier: MIT
"""Listings of rules, and the rules that a followed packet meets."""

import json
from collections.abc import Sequence

from nfq_guard.doctor import fate, iptables_rules, path
from nfq_guard.doctor.check import Check
from nfq_guard.doctor.path import Met
from nfq_guard.doctor.rule_model import Act, Table, Truth
from nfq_guard.firewall import Backend, Family
from nfq_guard.firewall.saved import parse

FILTER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"


def tables_of(text: str, backend: Backend = Backend.LEGACY) -> list[Table]:
    return iptables_rules.tables(parse(text), backend, Family.IPV4)


def walk(text: str, *more: Table, backend: Backend = Backend.LEGACY) -> list[Met]:
    return list(path.walk([*tables_of(text, backend), *more], 4))


def decides(mets: Sequence[Met], hook: str) -> list[tuple[Act, Truth]]:
    """The deciding rules that the packet may meet in a hook, and whether it certainly does."""
    return [
        (met.finding.rule.act, Truth.YES if met.finding.certain else Truth.DEPENDS)
        for met in mets
        if met.hook == hook and met.finding.rule.act is not Act.GO_ON
    ]


def fate_of(mets: Sequence[Met], hook: str) -> Check:
    (check,) = (
        each
        for each in fate.checks(mets)
        if each.id == f"fate.{hook}" and ("IPv4" in each.what or "IPv6" not in each.what)
    )
    return check


def nft(
    *rules: object,
    hook: str = "forward",
    priority: int = 0,
    table: str = "t",
    policy: str = "accept",
    more: Sequence[object] = (),
) -> str:
    where = {"family": "inet", "table": table}
    base = {**where, "name": "c", "type": "filter", "hook": hook, "prio": priority}
    items: list[object] = [{"metainfo": {}}, {"table": {"family": "inet", "name": table}}]
    items += [{"chain": {**base, "policy": policy}}, {"chain": {**where, "name": "x"}}, *more]
    items += [{"rule": {**where, "chain": "c", "expr": expr}} for expr in rules]
    items.append({"rule": {**where, "chain": "x", "expr": [{"counter": {}}, {"drop": None}]}})
    return json.dumps({"nftables": items})


STATE = {"ct": {"key": "state"}}


NAME = {"meta": {"key": "iifname"}}


def matching(left: object, right: object, sign: str = "==") -> dict[str, object]:
    return {"match": {"op": sign, "left": left, "right": right}}


def masked(mask: object) -> dict[str, object]:
    return {"&": [STATE, mask]}


DROPPED = {"drop": None}


ACCEPTED = {"accept": None}
