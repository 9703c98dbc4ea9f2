# SPDX-License-Identifier: MIT
"""The rules as text for iptables-restore: a pure function of the specification.

A jump tests for INVALID itself, so a valid packet costs one comparison in each hook and never
enters a chain of ours. The table mangle is where ctstate first exists and where the packets that
escape translation are still seen (kernel.md 5); packets on the loopback interface were judged in
OUTPUT already.

Both families get the same words: nothing in the rules names an address.
"""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.firewall.spec import CHAIN, COMMENT, FALLBACK_CHAIN, FailMode, RulesSpec

MANGLE: Final = "mangle"
FILTER: Final = "filter"

# Comments by which rules are known again whose counters are of interest.
ABOVE_THE_RATE: Final = "above the rate"
NOBODY_JUDGED: Final = "nobody judged it"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableRules:
    """What shall be ours in one table.

    Attributes:
        table: Its name.
        chain: The chain of ours.
        rules: The rules in it, in order, without `-A CHAIN`.
        jumps: The rules that lead there: a built-in chain, and the rule without `-A`; each is to
            be the first of its chain.
    """

    table: str
    chain: str
    rules: tuple[str, ...]
    jumps: tuple[tuple[str, str], ...]


def wanted(spec: RulesSpec) -> tuple[TableRules, ...]:
    """Everything that shall be ours, in the order in which it is to be loaded.

    The fallback comes last, so that no packet meets it before the queue.
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
    """The text that makes `wanted` true where nothing of ours is yet."""
    return "".join(table_text(table) for table in wanted(spec))


def table_text(table: TableRules, before: tuple[str, ...] = ()) -> str:
    """One table for `iptables-restore --noflush`; the kernel takes it whole or not at all.

    Args:
        table: What shall be there afterwards.
        before: Commands that come first, such as deletions of what is wrong.
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
    """The rule that keeps a flood from the daemon.

    The name of the bucket holds the rate: the kernel keeps the parameters of a bucket whose name
    it knows, and would ignore a new rate. The burst is a tenth of a second, at least 5 packets.
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
