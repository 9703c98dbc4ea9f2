# SPDX-License-Identifier: MIT
"""Input for iptables-restore that changes the installed rules into the required ones.

Each function returns text, empty if nothing has to change. A table is committed atomically; the
tables of a family follow one another in one run of the program.
"""

from nfq_guard.firewall.render import TableRules, table_text
from nfq_guard.firewall.saved import Saved, SavedTable


def install(wanted: tuple[TableRules, ...], live: Saved) -> str:
    """Install our chains and jumps, whatever their current state.

    The text does not contain foreign rules, so they and their counters stay.
    """
    kept = {should.table: should.chain for should in wanted}
    texts: list[str] = []
    for should in wanted:
        table = live.get(should.table, SavedTable(should.table))
        texts.append(table_text(should, tuple(_cleaned(table, keep=should.chain))))
    texts += [_removal(table) for name, table in live.items() if name not in kept]
    return "".join(texts)


def remove(live: Saved) -> str:
    """Remove all our rules, in reverse order of loading: the fallback before the queue."""
    return "".join(_removal(table) for table in sorted(live.values(), key=lambda one: one.name))


def _removal(table: SavedTable) -> str:
    commands = _cleaned(table, keep="")
    if not commands:
        return ""
    return "\n".join((f"*{table.name}", *commands, "COMMIT")) + "\n"


def _cleaned(table: SavedTable, keep: str) -> list[str]:
    """Commands that delete our jumps and our chains, except `keep`, which the caller declares."""
    chains = [chain for chain in table.own_chains() if chain != keep]
    return [
        *(f":{chain} - [0:0]" for chain in chains),
        *(f"-D {rule.chain} {rule.text}" for rule in table.own_jumps()),
        *(f"-X {chain}" for chain in chains),
    ]


def own_of(before: Saved) -> str:
    """Restore our rules from `before`, each jump first or last, if none of ours exists."""
    texts: list[str] = []
    for table in before.values():
        chains = table.own_chains()
        if chains:
            lines = [f"*{table.name}", *(f":{chain} - [0:0]" for chain in chains)]
            lines += [
                f"-A {rule.chain} {rule.text}" for rule in table.rules if rule.chain in chains
            ]
            for rule in table.own_jumps():
                first = table.of(rule.chain)[0] is rule
                where = f"-I {rule.chain} 1" if first else f"-A {rule.chain}"
                lines.append(f"{where} {rule.text}")
            texts.append("\n".join((*lines, "COMMIT")) + "\n")
    return "".join(texts)
