# SPDX-License-Identifier: MIT
"""Our nftables table, in which the kernel itself drops further INVALID packets of a flow.

Four sets, by hook and family, hold one direction of a TCP flow each: interface, addresses and
ports, as on the wire there. Their elements time out. An INVALID packet that is in a set is counted
and dropped; any other continues to the chains of iptables, where it is queued. A valid packet costs
one comparison in each of the two hooks.

nftables is used even with legacy iptables, because an ipset cannot hold both ports of a flow, and
two ipsets together would match flows that were never judged. Packets of both kinds of iptables pass
nftables' hooks; ours come right before those of the table mangle.

IPv6 packets with extension headers are excluded, because the bytes that the daemon receives may
end before the ports, and its judgment would differ.
"""

from collections.abc import Iterator
from typing import Final, final

from nfq_guard.firewall import nft_program
from nfq_guard.firewall.compare import Difference, Kind
from nfq_guard.firewall.nft_program import Listed
from nfq_guard.firewall.spec import COMMENT, OFFLOAD_TABLE, Backend, Family
from nfq_guard.firewall.xtables import Runner
from nfq_guard.names import counted

TABLE: Final = OFFLOAD_TABLE
COUNTER: Final = "dropped"
# By hook: the word in the names of its sets, and the interface that is matched.
_HOOKS: Final = {"prerouting": ("received", "iif"), "output": ("sent", "oif")}
_FAMILIES: Final = {4: ("ip", ""), 6: ("ip6", "ip6 nexthdr tcp ")}
# The priority of mangle is -150, that of conntrack -200.
_PRIORITY: Final = -155
_WHAT: Final = "offload"


def set_name(hook: str, family: int) -> str:
    """The set of a hook, `prerouting` or `output`, and a family, 4 or 6."""
    return f"{_HOOKS[hook][0]}{family}"


SETS: Final = tuple(set_name(hook, family) for hook in _HOOKS for family in _FAMILIES)


def render(most: int) -> str:
    """The input for `nft -f`, applied atomically; it replaces an existing table.

    Args:
        most: Maximum number of elements in each set.
    """
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    lines += [f"\tcounter {COUNTER} {{ }}"]
    for hook in _HOOKS:
        for family in _FAMILIES:
            address = f"ipv{family}_addr"
            key = f"iface_index . {address} . {address} . inet_service . inet_service"
            lines += [
                f"\tset {set_name(hook, family)} {{",
                f"\t\ttype {key}",
                f"\t\tsize {most}",
                "\t\tflags timeout",
                "\t}",
            ]
    for hook, (_, interface) in _HOOKS.items():
        lines += [
            f"\tchain {hook} {{",
            f"\t\ttype filter hook {hook} priority {_PRIORITY}; policy accept;",
            # Accept all other packets here: a jump would cost time for every packet of a flood.
            f'\t\tct state != invalid accept comment "{COMMENT}"',
        ]
        for family, (ip, only) in _FAMILIES.items():
            key = f"meta {interface} . {ip} saddr . {ip} daddr . tcp sport . tcp dport"
            where = f"@{set_name(hook, family)}"
            lines += [f'\t\t{only}{key} {where} counter name {COUNTER} drop comment "{COMMENT}"']
        lines += ["\t}"]
    return "\n".join([*lines, "}"]) + "\n"


@final
class OffloadTable:
    """The required and the installed table in the namespace of the calling thread."""

    def __init__(self, runner: Runner, most: int | None) -> None:
        """Require sets of `most` elements; None requires that there is no table."""
        self._runner = runner
        self._most = most

    def install(self) -> list[str]:
        """Install the table; returns a sentence for each change.

        Raises:
            UnavailableError: The program nft is missing, or the kernel lacks something.
            PrivilegeError: The kernel refused.
        """
        if self._most is None:
            return self.remove()
        if not self.verify():
            return []
        self._nft(["-f", "-"], render(self._most))
        return [f"nft: installed the table inet {TABLE}"]

    def verify(self) -> list[Difference]:
        """Every difference between the installed and the required table.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program nft is missing or fails.
        """
        live = self._live()
        if self._most is None:
            if live is None:
                return []
            return [_difference(Kind.LEFTOVER, "", "no rule of this configuration needs it")]
        if live is None:
            return [_difference(Kind.MISSING_CHAIN, "", "the table is not there")]
        return list(_differences(live, self._most))

    def remove(self) -> list[str]:
        """Remove the table, if it is there; returns a sentence for each change.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program fails.
        """
        if self._live() is None:
            return []
        self._nft(["delete", "table", "inet", TABLE], "")
        return [f"nft: removed the table inet {TABLE}"]

    def _live(self) -> Listed | None:
        """The table as nft lists it, without elements; None if it does not exist."""
        return nft_program.table(self._runner, TABLE, _WHAT)

    def _nft(self, words: list[str], text: str) -> None:
        nft_program.run(self._runner, words, text, _WHAT)


def _differences(live: Listed, most: int) -> Iterator[Difference]:
    """Every difference, by name, place and comment; foreign rules lack our comment."""
    chains = {one["chain"]["name"]: one["chain"] for one in live if "chain" in one}
    sets = {one["set"]["name"]: one["set"] for one in live if "set" in one}
    rules = [one["rule"] for one in live if "rule" in one]
    if not any("counter" in one for one in live):
        yield _difference(Kind.MISSING_RULE, "", f"the counter {COUNTER} is not there")
    for name in SETS:
        if name not in sets:
            yield _difference(Kind.MISSING_CHAIN, name, "the set is not there")
        elif sets[name].get("size") != most:
            detail = f"expected a set of {most} elements, found {sets[name].get('size')}"
            yield _difference(Kind.CHANGED_RULE, name, detail)
    for hook in _HOOKS:
        if hook not in chains:
            yield _difference(Kind.MISSING_CHAIN, hook, "it is not there")
            continue
        here = [rule for rule in rules if rule["chain"] == hook]
        ours = [rule for rule in here if rule.get("comment") == COMMENT]
        wanted = 1 + len(_FAMILIES)
        if len(ours) < wanted:
            detail = f"expected {wanted} rules of ours, found {len(ours)}"
            yield _difference(Kind.MISSING_RULE, hook, detail)
        if len(here) > len(ours):
            detail = f"found {counted(len(here) - len(ours), 'rule')} besides ours"
            yield _difference(Kind.EXTRA_RULE, hook, detail)
        place = (chains[hook].get("hook"), chains[hook].get("prio"))
        if place != (hook, _PRIORITY):
            detail = f"expected hook {hook} at {_PRIORITY}, found {place[0]} at {place[1]}"
            yield _difference(Kind.CHANGED_JUMP, hook, detail)


def _difference(kind: Kind, chain: str, detail: str) -> Difference:
    return Difference(
        kind=kind,
        family=Family.IPV4,
        backend=Backend.NFT,
        table=f"inet {TABLE}",
        chain=chain,
        detail=detail,
    )
