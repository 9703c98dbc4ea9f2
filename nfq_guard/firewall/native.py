# SPDX-License-Identifier: MIT
"""Our rules as a native nftables table, for hosts whose own rules are native.

The table has its own base chains directly after mangle: every mark that other programs set there is
on the packet when it is queued, and a verdict skips none of their rules. `nft -f` applies the table
atomically.

In fail mode kernel-drop the mark of unjudged packets is set directly before the queue. Chains at
the next priority drop packets that still have it, before any routing decision.

Each rule's comment has a digest of the whole text. By it `verify` distinguishes our rules from
others and from those of another configuration. Nft's output is not compared, because it differs by
release.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, final

from nfq_guard.errors import UnavailableError
from nfq_guard.firewall import nft_program, nft_query
from nfq_guard.firewall.compare import Difference, Kind
from nfq_guard.firewall.nft_program import Listed
from nfq_guard.firewall.rule_counters import RuleCounters
from nfq_guard.firewall.spec import (
    COMMENT,
    NATIVE_CHAIN,
    NATIVE_TABLE,
    FailMode,
    Family,
    Native,
    RulesSpec,
)
from nfq_guard.firewall.xtables import Runner
from nfq_guard.names import counted

PRIORITY: Final = -149
"""One after mangle."""

FALLBACK_PRIORITY: Final = PRIORITY + 1
"""Of the chains that drop packets not judged (fail mode kernel-drop)."""

_WHAT: Final = "nftables"
_SHED: Final = "shed"
_UNJUDGED: Final = "unjudged"
# Chains of fail mode kernel-drop.
_DROPPING: Final = ("unjudged_received", "unjudged_sent")
_DIGEST: Final = "DIGEST"
_PROBE: Final = f"table inet {NATIVE_TABLE}_probe {{ chain c {{ queue num 0 bypass; }}; }}\n"


class _Base(NamedTuple):
    """A base chain: its name, hook and priority, and its one rule."""

    name: str
    hook: str
    priority: int
    rule: str


def render(spec: RulesSpec, families: tuple[Family, ...]) -> str:
    """The input for `nft -f`, applied atomically; it replaces an existing table."""
    lines = [f"table inet {NATIVE_TABLE}", f"delete table inet {NATIVE_TABLE}"]
    lines += [f"table inet {NATIVE_TABLE} {{", f"\tcounter {_SHED} {{ }}"]
    lines += [f"\tcounter {_UNJUDGED} {{ }}", f"\tchain {NATIVE_CHAIN} {{"]
    lines += [f"\t\t{rule} {_comment()}" for rule in _judge(spec)]
    lines += ["\t}"]
    for base in _bases(spec, families):
        where = f"type filter hook {base.hook} priority {base.priority}; policy accept;"
        lines += ["", f"\tchain {base.name} {{", f"\t\t{where}"]
        lines += [f"\t\t{base.rule} {_comment()}", "\t}"]
    text = "\n".join([*lines, "}"]) + "\n"
    return text.replace(_DIGEST, hashlib.sha256(text.encode()).hexdigest()[:8])


def has_queue(runner: Runner) -> bool:
    """Whether the kernel and nft support the statement `queue` (CONFIG_NFT_QUEUE)."""
    return runner.find("nft") and runner.run(["nft", "-c", "-f", "-"], _PROBE).status == 0


def require_queue(runner: Runner) -> None:
    """Check for the statement `queue`.

    Raises:
        UnavailableError: The kernel or nft lacks it.
    """
    if not has_queue(runner):
        raise UnavailableError(
            "the kernel or nft lacks the statement `queue` (CONFIG_NFT_QUEUE, Debian package "
            "nftables): use the backend nft or legacy"
        )


def _comment() -> str:
    return f'comment "{COMMENT} {_DIGEST}"'


def _bases(spec: RulesSpec, families: tuple[Family, ...]) -> tuple[_Base, ...]:
    family = f"meta nfproto ipv{int(families[0])} " if len(families) == 1 else ""
    received = f'{family}iifname != "lo" ct state invalid'
    sent = f"{family}ct state invalid"
    bases = (
        _Base("prerouting", "prerouting", PRIORITY, f"{received} jump {NATIVE_CHAIN}"),
        _Base("output", "output", PRIORITY, f"{sent} jump {NATIVE_CHAIN}"),
    )
    if spec.fail_mode is not FailMode.KERNEL_DROP:
        return bases
    mark = f"{spec.unjudged_mark:#x}"
    unjudged = f"meta mark and {mark} == {mark} counter name {_UNJUDGED} drop"
    return (
        *bases,
        _Base(_DROPPING[0], "prerouting", FALLBACK_PRIORITY, f"{received} {unjudged}"),
        _Base(_DROPPING[1], "output", FALLBACK_PRIORITY, f"{sent} {unjudged}"),
    )


def _judge(spec: RulesSpec) -> Iterator[str]:
    if spec.fail_mode is FailMode.KERNEL_DROP:
        yield f"meta mark set meta mark or {spec.unjudged_mark:#x}"
    rate = spec.max_rate_pps
    if rate is not None:
        target = "drop" if spec.fail_mode is FailMode.CLOSED else "return"
        limit = f"limit rate over {rate}/second burst {spec.burst} packets"
        yield f"{limit} counter name {_SHED} {target}"
    several = spec.first_queue != spec.last_queue
    queues = f"{spec.first_queue}-{spec.last_queue}" if several else f"{spec.first_queue}"
    flags = [] if spec.fail_mode is FailMode.CLOSED else ["bypass"]
    flags += ["fanout"] if several and spec.cpu_fanout else []
    yield f"counter queue num {queues} {','.join(flags)}".rstrip()


@final
class NativeTable:
    """The required and the installed table in the namespace of the calling thread."""

    def __init__(self, runner: Runner, spec: RulesSpec, families: tuple[Family, ...]) -> None:
        """Store the arguments; nothing is run."""
        self._runner = runner
        self._spec = spec
        self._families = families

    def is_there(self) -> bool:
        """Whether a table of this name is loaded; True also without the privilege to find out."""
        return self._runner.has_nft_table(NATIVE_TABLE)

    def install(self) -> list[str]:
        """Install the table; returns a sentence for each change.

        Raises:
            UnavailableError: The program nft is missing, or the kernel lacks something.
            PrivilegeError: The kernel refused.
        """
        found = self.verify()
        if not found:
            return []
        require_queue(self._runner)
        text = render(self._spec, self._families)
        nft_program.run(self._runner, ["-f", "-"], text, _WHAT)
        done = "installed" if found[0].kind is Kind.MISSING_CHAIN else "put right"
        return [f"nft: {done} the table inet {NATIVE_TABLE}"]

    def verify(self) -> list[Difference]:
        """Every difference between the installed and the required table.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program nft is missing or fails.
        """
        live = nft_program.table(self._runner, NATIVE_TABLE, _WHAT)
        if live is None:
            return [_difference(Kind.MISSING_CHAIN, "", "the table is not there")]
        found = list(_differences(live, render(self._spec, self._families), self._wanted()))
        if nft_query.is_dormant(NATIVE_TABLE):
            found.append(_difference(Kind.DORMANT, "", "the kernel runs none of its rules"))
        return found

    def leftover(self) -> list[Difference]:
        """The difference that reports a table that should not exist."""
        if not self.is_there():
            return []
        return [_difference(Kind.LEFTOVER, "", "the rules of this configuration are elsewhere")]

    def remove(self) -> list[str]:
        """Remove the table, if it is there; returns a sentence for each change.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program fails.
        """
        if not self.is_there():
            return []
        words = ["delete", "table", "inet", NATIVE_TABLE]
        nft_program.run(self._runner, words, "", _WHAT)
        return [f"nft: removed the table inet {NATIVE_TABLE}"]

    def rule_counters(self) -> RuleCounters:
        """The kernel's counters of our rules; zeros without the table.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program fails.
        """
        live = nft_program.table(self._runner, NATIVE_TABLE, _WHAT) or []
        packets = {
            one["counter"]["name"]: int(one["counter"].get("packets", 0))
            for one in live
            if "counter" in one
        }
        return RuleCounters(shed=packets.get(_SHED, 0), unjudged=packets.get(_UNJUDGED, 0))

    def queues(self) -> list[int]:
        """The queues to which the installed table leads; for a range, the first.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program fails.
        """
        return [_first(statement.get("num", 0)) for statement in self._queue_statements()]

    def holds_back(self) -> bool:
        """Whether the installed table drops packets that are not judged.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program fails.
        """
        live = nft_program.table(self._runner, NATIVE_TABLE, _WHAT) or []
        names = {one["chain"]["name"] for one in live if "chain" in one}
        bypasses = [
            "bypass" in statement.get("flags", ()) for statement in self._queue_statements()
        ]
        return not all(bypasses) or not names.isdisjoint(_DROPPING)

    def _queue_statements(self) -> list[dict[str, Any]]:
        live = nft_program.table(self._runner, NATIVE_TABLE, _WHAT) or []
        return [
            statement["queue"]
            for one in live
            if "rule" in one
            for statement in one["rule"]["expr"]
            if isinstance(statement, dict) and isinstance(statement.get("queue"), dict)
        ]

    def _wanted(self) -> dict[str, tuple[_Base | None, int]]:
        """By chain: the required properties of a base chain, and the number of its rules."""
        chains: dict[str, tuple[_Base | None, int]] = {
            base.name: (base, 1) for base in _bases(self._spec, self._families)
        }
        chains[NATIVE_CHAIN] = (None, len(list(_judge(self._spec))))
        return chains


def _differences(
    live: Listed, text: str, wanted: dict[str, tuple[_Base | None, int]]
) -> Iterator[Difference]:
    chains = {one["chain"]["name"]: one["chain"] for one in live if "chain" in one}
    rules = [one["rule"] for one in live if "rule" in one]
    comment = text.split('comment "', 1)[1].split('"', 1)[0]
    for name, (base, count) in wanted.items():
        if name not in chains:
            yield _difference(Kind.MISSING_CHAIN, name, "it is not there")
            continue
        here = [rule for rule in rules if rule["chain"] == name]
        ours = [rule for rule in here if rule.get("comment") == comment]
        others = [rule for rule in here if not _is_ours(rule)]
        if others:
            detail = f"found {counted(len(others), 'rule')} besides ours"
            yield _difference(Kind.EXTRA_RULE, name, detail)
        if len(here) - len(others) != len(ours):
            yield _difference(Kind.CHANGED_RULE, name, "it is for another configuration")
        elif len(ours) != count:
            detail = f"expected {counted(count, 'rule')} of ours, found {len(ours)}"
            yield _difference(Kind.MISSING_RULE, name, detail)
        if base is not None:
            place = (chains[name].get("hook"), chains[name].get("prio"))
            policy = chains[name].get("policy", "accept")
            if (*place, policy) != (base.hook, base.priority, "accept"):
                detail = (
                    f"expected hook {base.hook} at {base.priority} with policy accept, "
                    f"found {place[0]} at {place[1]} with {policy}"
                )
                yield _difference(Kind.CHANGED_JUMP, name, detail)
    for name in chains.keys() - wanted.keys():
        yield _difference(Kind.LEFTOVER, name, "no rule of this configuration needs it")


def _is_ours(rule: dict[str, Any]) -> bool:
    return str(rule.get("comment", "")).startswith(f"{COMMENT} ")


def _first(num: object) -> int:
    """The queue of a `queue` statement, or the first of a range."""
    if isinstance(num, dict):
        num = num.get("range", [0])[0]
    return int(num) if isinstance(num, int) else 0


def _difference(kind: Kind, chain: str, detail: str) -> Difference:
    return Difference(
        kind=kind,
        family=Family.IPV4,
        backend=Native.NFTABLES,
        table=f"inet {NATIVE_TABLE}",
        chain=chain,
        detail=detail,
    )
