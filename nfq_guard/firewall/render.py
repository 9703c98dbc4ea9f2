# SPDX-License-Identifier: MIT
"""The rules as text for iptables-restore: a pure function of the specification and the backend.

A jump itself matches INVALID, so a valid packet costs one comparison in each hook and never enters
our chain. mangle is the first table with a ctstate, and sees the packets that escape translation
(kernel.md 5). Packets on the loopback interface were judged in OUTPUT already.

After a verdict, and with `--queue-bypass` without a daemon, a packet continues at the next table
and skips the rules after ours in the same chain. Each jump to a queue is therefore the last rule of
its chain.

If mangle OUTPUT ends in a queue, iptables-nft does not reroute a packet whose mark changed there
(kernel.md 5). With that backend, outgoing packets are queued in the table security, after filter.

In fail mode kernel-drop our chain marks a packet before it queues it, and the verdict clears the
mark. A packet that still has the mark in the table filter was not judged, and is dropped before any
other rule there accepts it.

The rules of both families are the same, because none contains an address.
"""

from dataclasses import dataclass, replace
from typing import Final, final

from nfq_guard.firewall.spec import (
    CHAIN,
    COMMENT,
    FALLBACK_CHAIN,
    Backend,
    FailMode,
    RulesSpec,
)

MANGLE: Final = "mangle"
FILTER: Final = "filter"
SECURITY: Final = "security"

# Comments that identify the rules whose counters are read.
ABOVE_THE_RATE: Final = "above the rate"
NOBODY_JUDGED: Final = "nobody judged it"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableRules:
    """Our chain and jumps in one table.

    Attributes:
        table: Its name.
        chain: Our chain.
        rules: The rules in it, in order, without `-A CHAIN`.
        jumps: The jumps to it: a built-in chain, and the rule without `-A`.
        last: Whether each jump must be the last rule of its chain; else it must be the first.
    """

    table: str
    chain: str
    rules: tuple[str, ...]
    jumps: tuple[tuple[str, str], ...]
    last: bool


def wanted(spec: RulesSpec, backend: Backend) -> tuple[TableRules, ...]:
    """All our chains and jumps, in loading order.

    The fallback comes last, so that no packet reaches it before the queue exists.
    """
    received = ("PREROUTING", f"! -i lo {_invalid()} {_comment()} -j {CHAIN}")
    sent = ("OUTPUT", f"{_invalid()} {_comment()} -j {CHAIN}")
    places: tuple[str, ...]
    if backend is Backend.LEGACY:
        queues = [_queue_table(spec, MANGLE, (received, sent))]
        places = ("INPUT", "FORWARD", "OUTPUT")
    else:
        # No table follows security: an unjudged packet is dropped at the queue itself.
        here = spec
        if spec.fail_mode is FailMode.KERNEL_DROP:
            here = replace(spec, fail_mode=FailMode.CLOSED)
        queues = [
            _queue_table(spec, MANGLE, (received,)),
            _queue_table(here, SECURITY, (sent,)),
        ]
        places = ("INPUT", "FORWARD")
    if spec.fail_mode is not FailMode.KERNEL_DROP:
        return tuple(queues)
    fallback = TableRules(
        table=FILTER,
        chain=FALLBACK_CHAIN,
        rules=(f"{_comment(NOBODY_JUDGED)} -j DROP",),
        jumps=tuple((place, _unjudged(spec)) for place in places),
        last=False,
    )
    return (*queues, fallback)


def render(spec: RulesSpec, backend: Backend) -> str:
    """The text that installs `wanted` if none of our rules exist."""
    return "".join(table_text(table) for table in wanted(spec, backend))


def table_text(table: TableRules, before: tuple[str, ...] = ()) -> str:
    """One table for `iptables-restore --noflush`, applied atomically.

    Args:
        table: The required chain and jumps.
        before: Preceding commands, such as deletions.
    """
    lines = [f"*{table.table}", f":{table.chain} - [0:0]", *before]
    lines += [f"-A {table.chain} {rule}" for rule in table.rules]
    where = "-A {}" if table.last else "-I {} 1"
    lines += [f"{where.format(chain)} {rule}" for chain, rule in table.jumps]
    lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _queue_table(spec: RulesSpec, table: str, jumps: tuple[tuple[str, str], ...]) -> TableRules:
    rules = (*_mark(spec), *_shed(spec), _queue(spec))
    return TableRules(table=table, chain=CHAIN, rules=rules, jumps=jumps, last=True)


def _mark(spec: RulesSpec) -> tuple[str, ...]:
    """The rule that marks a packet as not judged yet."""
    if spec.fail_mode is not FailMode.KERNEL_DROP:
        return ()
    mark = f"{spec.unjudged_mark:#x}"
    return (f"{_comment()} -j MARK --set-xmark {mark}/{mark}",)


def _unjudged(spec: RulesSpec) -> str:
    mark = f"{spec.unjudged_mark:#x}"
    return f"{_invalid()} -m mark --mark {mark}/{mark} {_comment()} -j {FALLBACK_CHAIN}"


def _invalid() -> str:
    return "-m conntrack --ctstate INVALID"


def _comment(what: str = "") -> str:
    return (
        f'-m comment --comment "{COMMENT}: {what}"' if what else f"-m comment --comment {COMMENT}"
    )


def _shed(spec: RulesSpec) -> tuple[str, ...]:
    """The rule that limits the rate of queued packets.

    The bucket's name contains the rate, because the kernel keeps the parameters of an existing
    bucket and would ignore a new rate.
    """
    rate = spec.max_rate_pps
    if rate is None:
        return ()
    target = "DROP" if spec.fail_mode is FailMode.CLOSED else "RETURN"
    limit = f"--hashlimit-above {rate}/sec --hashlimit-burst {spec.burst}"
    bucket = f"--hashlimit-name nfqg{rate}"
    return (f"-m hashlimit {limit} {bucket} {_comment(ABOVE_THE_RATE)} -j {target}",)


def _queue(spec: RulesSpec) -> str:
    if spec.first_queue == spec.last_queue:
        target = f"NFQUEUE --queue-num {spec.first_queue}"
    else:
        target = f"NFQUEUE --queue-balance {spec.first_queue}:{spec.last_queue}"
    if spec.fail_mode is not FailMode.CLOSED:
        target += " --queue-bypass"
    if spec.cpu_fanout and spec.first_queue != spec.last_queue:
        target += " --queue-cpu-fanout"
    return f"{_comment()} -j {target}"
