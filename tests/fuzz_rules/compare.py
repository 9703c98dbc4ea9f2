# SPDX-License-Identifier: MIT
"""Compares the doctor's findings on a rule set with the kernel's treatment of two packets.

One packet is INVALID, because it is far outside of the window of its flow; the other one is a valid
packet of the same flow. Their headers differ only in the sequence numbers.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self, final

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.doctor import fate, foreign, host_rules, path
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.path import Met, Order
from nfq_guard.doctor.rule_model import TAKES, UNCERTAIN, Act
from nfq_guard.firewall.xtables import System
from nfq_guard.wire.packet import ACK, SYN
from tests.fuzz_rules.generate import Part, RuleSet
from tests.support.live import LiveConntrack
from tests.support.packets import tcp

_ADDRESSES: Final = {
    4: (bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1))),
    6: (
        bytes.fromhex("20010db8") + bytes(11) + b"\1",
        bytes.fromhex("20010db80001") + bytes(9) + b"\1",
    ),
}
_BAD: Final = frozenset({Status.WARNING, Status.PROBLEM})
_FAR: Final = 1 << 28
# Counts the RSTs and ICMP errors with which the router answers.
_SEE: Final = """\
table inet see {
  counter rst { }
  counter error { }
  chain out {
    type filter hook output priority -500;
    tcp flags rst counter name rst
    icmp type destination-unreachable counter name error
    icmpv6 type destination-unreachable counter name error
  }
}
"""
_EMPTY: Final = "".join(
    f"*{table}\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
    for table in ("filter", "security")
)
_ACTS: Final = {"rst": Act.RESET, "error": Act.REJECT}


class Outcome(NamedTuple):
    """The fate of the two packets.

    Attributes:
        invalid: The fate of the INVALID one; None if it passed.
        known: The fate of the other one; None if it passed.
    """

    invalid: Act | None
    known: Act | None


@final
@dataclass(slots=True)
class Tally:
    """The counts of a run.

    Attributes:
        compared: Rule sets compared.
        refused: Rule sets that their program or the kernel refused.
        outcomes: Rule sets by the pair of fates.
        vague: Rule sets on which the doctor was less certain than it could be.
        failures: Rule sets on which it was wrong.
    """

    compared: int = 0
    refused: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    vague: int = 0
    failures: list[str] = field(default_factory=list)


@final
class Router:
    """A router with random rules."""

    def __init__(self) -> None:
        """Create it, with counters of its answers."""
        self._live = LiveConntrack(Sysctls(loose=False), reads_log=False)
        self._port = 1024
        space = self._live.space
        try:
            space.ip("address", "add", "203.0.113.1/32", "dev", "out0")
            space.ip("address", "add", "2001:db8:ffff::1/128", "dev", "out0", "nodad")
            space.run("nft", "-f", "-", stdin=_SEE)
        except BaseException:
            self._live.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._live.close()

    def load(self, rules: RuleSet) -> bool:
        """Load rules; returns whether every program accepted them."""
        return all(_load(part) for part in rules.parts)

    def clear(self, rules: RuleSet) -> None:
        """Unload the rules that were loaded."""
        for part in rules.parts:
            if part.program == "nft":
                name = " ".join(part.text.split()[1:3])
                System().run(["nft", "-f", "-"], f"table {name} {{ }}\ndelete table {name}\n")
            else:
                for program in _restores(part.program):
                    System().run([program, "-w"], _EMPTY)

    def open(self, family: int) -> int:
        """Open a flow; returns the client's port."""
        self._port = self._port % 60000 + 1

        client, server = _ADDRESSES[family]
        # The acknowledgement number of `tcp` is 0: the one that follows these.
        self._live.send_all(tcp(client, server, self._port, 80, SYN, seq=0xFFFFFFFF))
        self._live.send_all(tcp(server, client, 80, self._port, SYN | ACK, seq=0xFFFFFFFF))
        return self._port

    def outcome(self, family: int, port: int) -> Outcome:
        """Send the two packets of a flow."""
        client, server = _ADDRESSES[family]
        known = self._taken(tcp(client, server, port, 80, ACK, seq=0))
        invalid = self._taken(tcp(client, server, port, 80, ACK, seq=_FAR))
        return Outcome(invalid, known)

    def _taken(self, octets: bytes) -> Act | None:
        before = _answers()
        self._live.put(octets)
        passed = self._live.came_out() is not None
        answered = [_ACTS[name] for name, count in _answers().items() if count != before[name]]
        if passed:
            return None
        return answered[0] if answered else Act.DROP


def _answers() -> dict[str, int]:
    done = System().run(["nft", "-j", "list", "counters", "table", "inet", "see"], "")
    items = (each.get("counter") for each in json.loads(done.stdout)["nftables"])
    return {item["name"]: item["packets"] for item in items if item is not None}


def _load(part: Part) -> bool:
    if part.program == "nft":
        return System().run(["nft", "-f", "-"], part.text).status == 0
    return all(
        System().run([program, "-w"], part.text).status == 0 for program in _restores(part.program)
    )


def _restores(program: str) -> Iterator[str]:
    yield f"{program}-restore"
    yield f"{program.replace('iptables', 'ip6tables')}-restore"


def compare(router: Router, rules: RuleSet, family: int, tally: Tally) -> None:
    """Load rules, send the packets, and compare; `tally` takes the result."""
    port = router.open(family)
    try:
        if not router.load(rules):
            tally.refused += 1
            return
        done = router.outcome(family, port)
        read = host_rules.read()
    finally:
        router.clear(rules)
    tally.compared += 1
    tally.outcomes[done] += 1
    mets = list(path.walk(read.tables, family))
    said = [*fate.checks(read.path(), unnamed=read.unnamed()), *foreign.checks(read.path())]
    wrong = [f"unread: {text}" for text in read.problems]
    wrong += [] if wrong else _wrong(mets, _of_family(said, family), done, exact=rules.exact)
    if wrong:
        shown = "\n".join(f"  {each.status} {each.id}: {each.what}" for each in said)
        tally.failures.append(
            f"{'; '.join(wrong)}\nIPv{family}, INVALID: {_word(done.invalid)}, known: "
            f"{_word(done.known)}\n{rules}\n{shown}"
        )


def _tied(taking: Sequence[Met]) -> bool:
    """Whether base chains of one priority take packets: the kernel defines no order among these."""
    places = set()
    for met in taking:
        table, name = met.finding.table, (met.finding.path or (met.finding.chain,))[-1]
        places.add((met.hook, table.bases[name].priority, table.filter, table.name, name))
    return len({place[:2] for place in places}) < len(places)


def _of_family(checks: Iterable[Check], family: int) -> list[Check]:
    return [check for check in checks if f"IPv{family}" in check.what]


def _word(act: Act | None) -> str:
    return "passes" if act is None else act.value


def _wrong(
    mets: Sequence[Met], said: Sequence[Check], done: Outcome, *, exact: bool
) -> Iterator[str]:
    taking = [met for met in mets if met.finding.rule.act in TAKES and met.order is not Order.NEVER]
    sure = next((place for place, met in enumerate(taking) if met.finding.certain), None)
    possible = taking if sure is None else taking[: sure + 1]
    acts = {met.finding.rule.act for met in possible}
    elsewhere = not acts.isdisjoint({Act.ELSEWHERE, *UNCERTAIN})
    if done.invalid is None and sure is not None and not elsewhere:
        yield f"`{taking[sure].finding.rule.text}` takes it for sure, and it passes"
    if done.invalid is not None and done.invalid not in acts and not elsewhere:
        yield f"no rule that {done.invalid} it is found"
    if exact and not elsewhere and not _tied(taking):
        first = None if sure is None else taking[sure].finding.rule.act
        if first is not done.invalid:
            yield f"it {_word(done.invalid)}, and the doctor is sure only of {_word(first)}"
    if done.known is None and done.invalid is not None and not elsewhere:
        told = any(
            check.status in _BAD or (not exact and "unless a rule for other" in check.what)
            for check in said
        )
        if not told:
            yield "a known packet passes, this one does not, and nobody warns of it"
