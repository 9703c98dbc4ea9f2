# SPDX-License-Identifier: MIT
"""The rules as text for iptables-restore: a pure function of the specification.

A jump matches INVALID itself, so a valid packet costs one comparison in each hook and never enters
our chain. mangle is the first table with a ctstate, and it sees the packets that escape translation
(kernel.md 5). Packets on the loopback interface were judged in OUTPUT already.

The rules of both families are the same, because none names an address.
"""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.firewall.spec import CHAIN, COMMENT, FALLBACK_CHAIN, FailMode, RulesSpec

MANGLE: Final = "mangle"
FILTER: Final = "filter"

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
        jumps: The jumps to it: a built-in chain, and the rule without `-A`; each must be the
            first rule of its chain.
    """

    table: str
    chain: str
    rules: tuple[str, ...]
    jumps: tuple[tuple[str, str], ...]


def wanted(spec: RulesSpec) -> tuple[TableRules, ...]:
    """All our chains and jumps, in the order in which they are loaded.

    The fallback comes last, so that no packet reaches it before the queue exists.
    """
    queue = TableRules(
        table=MANGLE,
        chain=CHAIN,
        rules=(*_shed(spec), _queue(spec)),
        jumps=(
            ("PREROUTING", f"! -i lo {_invalid()} {_comment()} -j {CHAIN}"),
            ("OUTPUT", f"{_invalid()} {_comment()} -j {CHAIN}"),
        ),
    )
    if spec.fail_mode is not FailMode.KERNEL_DROP:
        return (queue,)
    mark = f"{spec.judged_mark:#x}"
    unjudged = f"{_invalid()} -m mark ! --mark {mark}/{mark} {_comment()} -j {FALLBACK_CHAIN}"
    fallback = TableRules(
        table=FILTER,
        chain=FALLBACK_CHAIN,
        rules=(f"{_comment(NOBODY_JUDGED)} -j DROP",),
        jumps=(("INPUT", unjudged), ("FORWARD", unjudged), ("OUTPUT", unjudged)),
    )
    return (queue, fallback)


def render(spec: RulesSpec) -> str:
    """The text that installs `wanted` where none of our rules exist."""
    return "".join(table_text(table) for table in wanted(spec))


def table_text(table: TableRules, before: tuple[str, ...] = ()) -> str:
    """One table for `iptables-restore --noflush`, applied whole or not at all.

    Args:
        table: The wanted chain and jumps.
        before: Commands that come first, such as deletions.
    """
    lines = [f"*{table.table}", f":{table.chain} - [0:0]", *before]
    lines += [f"-A {table.chain} {rule}" for rule in table.rules]
    lines += [f"-I {chain} 1 {rule}" for chain, rule in table.jumps]
    lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _invalid() -> str:
    return "-m conntrack --ctstate INVALID"


def _comment(what: str = "") -> str:
    return (
        f'-m comment --comment "{COMMENT}: {what}"' if what else f"-m comment --comment {COMMENT}"
    )


def _shed(spec: RulesSpec) -> tuple[str, ...]:
    """The rule that limits the rate of queued packets.

    The bucket's name contains the rate, because the kernel keeps the parameters of an existing
    bucket and would ignore a new rate. The burst is a tenth of a second, at least 5 packets.
    """
    rate = spec.max_rate_pps
    if rate is None:
        return ()
    burst = max(5, rate // 10)
    target = "DROP" if spec.fail_mode is FailMode.CLOSED else "RETURN"
    limit = f"--hashlimit-above {rate}/sec --hashlimit-burst {burst} --hashlimit-name nfqg{rate}"
    return (f"-m hashlimit {limit} {_comment(ABOVE_THE_RATE)} -j {target}",)


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
