# SPDX-License-Identifier: MIT
"""Installs, verifies and removes our rules in the packet filter of this namespace."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, final

from nfq_guard.errors import BusyError, NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.firewall import native, nft_query, offload, transaction
from nfq_guard.firewall.backends import Choice, choose, choose_unprivileged, require_any
from nfq_guard.firewall.compare import Difference, Kind, differences, remarks
from nfq_guard.firewall.native import NativeTable
from nfq_guard.firewall.offload import OffloadTable
from nfq_guard.firewall.render import TableRules, render, wanted
from nfq_guard.firewall.rule_counters import RuleCounters
from nfq_guard.firewall.saved import Saved, is_own, queue_of
from nfq_guard.firewall.spec import (
    FALLBACK_CHAIN,
    Backend,
    FailMode,
    Family,
    Native,
    Place,
    RulesSpec,
)
from nfq_guard.firewall.xtables import (
    Runner,
    System,
    Xtables,
    family_is_missing,
    require_privilege,
)

BOTH_FAMILIES: Final = (Family.IPV4, Family.IPV6)

# The backend's tables that our rules can be in, by the fail mode that needs the most.
_EVERYTHING: Final = RulesSpec(fail_mode=FailMode.KERNEL_DROP)

# Other programs change the tables too, and a rule may have disappeared before we delete it.
_ATTEMPTS: Final = 3


@final
@dataclass(frozen=True, slots=True)
class Changes:
    """The changes made.

    Attributes:
        done: One sentence for each change; empty if none was needed.
        notes: Further information for the operator.
    """

    done: tuple[str, ...]
    notes: tuple[str, ...]


def _nobody(_ours: range) -> Mapping[int, str]:
    return {}


@final
class Firewall:
    """Our required and installed rules.

    Attributes:
        spec: The required rules; may be replaced between two calls.
        families: The families to manage.
        asked: The backend that was asked for; None to choose one by the existing rules.
    """

    def __init__(
        self,
        spec: RulesSpec,
        backend: Place | None = None,
        families: tuple[Family, ...] = BOTH_FAMILIES,
        runner: Runner | None = None,
        served_by_others: Callable[[range], Mapping[int, str]] = _nobody,
    ) -> None:
        """Store the arguments.

        Args:
            spec: The required rules.
            backend: None: `backends.choose` decides later.
            families: The families to manage.
            runner: Access to the system.
            served_by_others: Returns the processes that serve other queues, by queue.
        """
        self.spec = spec
        self.families = families
        self.asked = backend
        self._runner: Runner = runner or System()
        self._served_by_others = served_by_others
        self._chosen: Place | None = None

    def choice(self) -> Choice:
        """The backend, and why.

        Raises:
            UnavailableError: iptables is not installed.
            PrivilegeError: A capability is missing.
        """
        if self.asked is not None:
            return Choice(self.asked, "as asked for")
        require_privilege(self._runner, Backend.NFT)
        choice = choose(self._runner, self.families, self._chosen)
        self._chosen = choice.backend
        return choice

    def show(self) -> str:
        """The input for `iptables-restore --noflush` or `nft -f`, with the choice of the backend.

        Needs no privilege, but notes that without it the backend with rules cannot be determined.
        """
        choice = self.described_choice()
        lines = [f"# backend {choice.backend}: {choice.why}\n"]
        if choice.backend is Native.NFTABLES:
            lines.append(f"# nft -f -\n{native.render(self.spec, self.families)}")
        else:
            lines += [self._show_family(choice.backend, family) for family in self.families]
        if self.spec.offload_entries is not None:
            lines.append(f"# nft -f -\n{offload.render(self.spec.offload_entries)}")
        return "".join(lines)

    def _show_family(self, backend: Backend, family: Family) -> str:
        tables = Xtables(self._runner, backend, family)
        missing = tables.missing()
        program = tables.program("-restore") or f"missing: {missing}"
        return f"# IPv{family}: {program} --noflush\n{render(self.spec, backend)}"

    def described_choice(self) -> Choice:
        """`choice`, or a guess without the privilege to read the rules."""
        try:
            return self.choice()
        except NfqGuardError:
            return choose_unprivileged(self._runner)

    def load_modules(self) -> None:
        """Make the legacy programs load their modules, which takes more privileges than a change.

        Does nothing for the other backend, whose modules the kernel loads.

        Raises:
            UnavailableError: A program is missing or fails.
            PrivilegeError: A capability is missing.
        """
        backend = self.choice().backend
        if backend is Backend.LEGACY:
            for tables in self._usable(backend, []):
                tables.restore("*mangle\nCOMMIT\n")

    def require(self) -> None:
        """Check for what the rules need in any case; reads no rules.

        Raises:
            UnavailableError: A program is missing, or the kernel lacks nftables' statement `queue`.
        """
        if self.asked is None:
            require_any(self._runner)
        elif self.asked is Native.NFTABLES:
            native.require_queue(self._runner)
        else:
            notes: list[str] = []
            if not list(self._usable(self.asked, notes)):
                raise UnavailableError("; ".join(notes))

    def install(self) -> Changes:
        """Install the rules, last in their chains, and in one backend only.

        A second call changes nothing and keeps the counters. If IPv6 fails after IPv4 was changed,
        our previous IPv4 rules are restored.

        Raises:
            UnavailableError: A program, or a feature of the kernel, is missing.
            PrivilegeError: A capability is missing.
            BusyError: Another process holds the lock and does not release it, or the installed
                rules are those of another daemon, which is running.
        """
        backend = self.choice().backend
        require_privilege(self._runner, backend)
        with self._runner.locked():
            self._refuse_owned_by_another()
            if backend is Native.NFTABLES:
                return self._install_native()
            return self._install(backend)

    def _install_native(self) -> Changes:
        notes: list[str] = []
        done = self._native().install()
        done += self._offload().install()
        for backend in Backend:
            done += self._remove_from(backend, notes)
        return Changes(tuple(done), tuple(notes))

    def _install(self, backend: Backend) -> Changes:
        done: list[str] = []
        notes: list[str] = []
        undo: list[tuple[Xtables, Saved]] = []
        usable = list(self._usable(backend, notes))
        left_out = len(self.families) - len(usable)
        try:
            for tables in usable:
                changes = self._install_family(tables, undo, notes)
                left_out += changes is None
                done += changes or []
            done += self._offload().install()
        except NfqGuardError as error:
            undone = self._roll_back(undo)
            raise type(error)(f"{error}{undone}") from None
        if left_out == len(self.families):
            raise UnavailableError("; ".join(notes))
        done += self._remove_from(backend.other, notes)
        done += self._native().remove()
        return Changes(tuple(done), tuple(notes))

    def verify(self) -> list[Difference]:
        """Every difference between the installed and the required rules; empty if there is none.

        Raises:
            UnavailableError: iptables is not installed.
            PrivilegeError: A capability is missing.
        """
        backend = self.choice().backend
        require_privilege(self._runner, backend)
        found: list[Difference] = []
        if backend is Native.NFTABLES:
            found += self._native().verify()
        else:
            for tables in self._usable(backend, []):
                should = wanted(self.spec, backend)
                found += differences(should, _readable(tables, should), tables.family, backend)
            found += self._native().leftover()
        for other in Backend:
            if other is not backend:
                for tables in self._usable(other, []):
                    found += _leftovers(tables)
        return found + self._offload().verify()

    def remarks(self) -> list[Difference]:
        """What affects our rules in tables shared with others, and no installation changes.

        These are rules in the chains of our jumps, and tables that are dormant.

        Raises:
            UnavailableError: iptables is not installed.
            PrivilegeError: A capability is missing.
        """
        backend = self.choice().backend
        found: list[Difference] = []
        if backend is Native.NFTABLES:
            return found  # our own base chain has no foreign rules
        for tables in self._usable(backend, []):
            should = wanted(self.spec, backend)
            found += remarks(should, tables.save(), tables.family, backend)
            found += [
                Difference(
                    kind=Kind.DORMANT,
                    family=tables.family,
                    backend=backend,
                    table=each.table,
                    chain="",
                    detail="the kernel runs none of its rules, ours included",
                )
                for each in should
                if backend is Backend.NFT and nft_query.is_dormant(each.table, int(tables.family))
            ]
        return found

    def generation(self) -> int | None:
        """A number that changes with the rules of nftables or iptables-nft; None if unknown."""
        return nft_query.generation()

    def holds_back(self) -> bool:
        """Whether the installed rules drop packets that are not judged, whatever `spec` says.

        Raises:
            PrivilegeError: A capability is missing.
            UnavailableError: A program is missing or fails.
        """
        for backend in Backend:
            for tables in self._usable(backend, []):
                for table in tables.save().values():
                    ours = [rule.text for rule in table.rules if is_own(rule.chain)]
                    if FALLBACK_CHAIN in table.policies or any(
                        "-j NFQUEUE" in rule and "--queue-bypass" not in rule for rule in ours
                    ):
                        return True
        return self._native().holds_back()

    def rule_counters(self) -> RuleCounters:
        """The kernel's counters of our rules, summed over both families.

        Raises:
            UnavailableError: iptables is not installed.
            PrivilegeError: A capability is missing.
        """
        backend = self.choice().backend
        if backend is Native.NFTABLES:
            return self._native().rule_counters()
        total = RuleCounters()
        for tables in self._usable(backend, []):
            total += tables.rule_counters()
        return total

    def remove(self) -> Changes:
        """Remove all our rules from both backends. Idempotent.

        Raises:
            UnavailableError: iptables is not installed.
            PrivilegeError: A capability is missing.
            BusyError: Another process holds the lock and does not release it, or the installed
                rules are those of another daemon, which is running.
        """
        backend = self.described_choice().backend
        require_privilege(self._runner, backend)
        with self._runner.locked():
            self._refuse_owned_by_another()
            return self._remove(backend)

    def _remove(self, backend: Place) -> Changes:
        done: list[str] = []
        notes: list[str] = []
        for one in sorted(Backend, key=lambda each: each is not backend):
            done += self._remove_from(one, notes)
        for table in (self._native(), self._offload()):
            try:
                done += table.remove()
            except NfqGuardError as error:
                notes.append(f"not checked: {error}")
        return Changes(tuple(done), tuple(notes))

    def _refuse_owned_by_another(self) -> None:
        """Raise if the installed rules lead to queues of another daemon.

        Raises:
            BusyError: Such a daemon is running; it is named.
        """
        others = self._served_by_others(range(self.spec.first_queue, self.spec.last_queue + 1))
        if not others:
            return
        installed = [queue for one in Backend for queue in self._queues_in(one)]
        installed += self._native().queues()
        for queue in installed:
            if queue in others:
                raise BusyError(
                    f"the installed rules lead to queue {queue}, which {others[queue]} serves: "
                    "stop it first, or name its queue"
                )

    def _queues_in(self, backend: Backend) -> list[int]:
        return [queue for one in self._usable(backend, []) for queue in _queues_of(one)]

    def _native(self) -> NativeTable:
        return NativeTable(self._runner, self.spec, self.families)

    def _offload(self) -> OffloadTable:
        return OffloadTable(self._runner, self.spec.offload_entries)

    def _usable(self, backend: Backend, notes: list[str]) -> Iterator[Xtables]:
        for family in self.families:
            tables = Xtables(self._runner, backend, family)
            missing = tables.missing()
            if missing is None:
                yield tables
            else:
                notes.append(f"IPv{family} left out: {missing}")

    def _install_family(
        self, tables: Xtables, undo: list[tuple[Xtables, Saved]], notes: list[str]
    ) -> list[str] | None:
        """Change and verify until there is no difference, because other programs may interfere.

        Returns None if the kernel has no tables of the family.
        """
        should = wanted(self.spec, tables.backend)
        done: list[str] = []
        found: list[Difference] = []
        failure: UnavailableError | None = None
        for _ in range(_ATTEMPTS):
            before = _readable(tables, should)
            found = differences(should, before, tables.family, tables.backend)
            if not found:
                return done
            undo.append((tables, before))
            try:
                tables.restore(transaction.install(should, before))
            except UnavailableError as error:
                if tables.family is Family.IPV6 and family_is_missing(error):
                    undo.pop()
                    notes.append(f"IPv6 left out: the kernel has no ip6tables ({error})")
                    return None
                failure = error
            else:
                failure = None
                done = done or [f"IPv{tables.family} {tables.backend}: {_summary(found)}"]
        if failure is not None:
            raise failure
        left = differences(should, _readable(tables, should), tables.family, tables.backend)
        if left:
            notes.append(f"IPv{tables.family}: others change the rules as well: {left[0]}")
        return done

    def _roll_back(self, undo: list[tuple[Xtables, Saved]]) -> str:
        """Restore our previous rules; returns a sentence for the error message."""
        failed: list[str] = []
        undone = []
        for tables, before in reversed(undo):
            try:
                now = tables.save()
                if transaction.own_of(now) == transaction.own_of(before):
                    continue
                tables.restore(transaction.remove(now) + transaction.own_of(before))
                undone.append(f"IPv{tables.family}")
            except NfqGuardError as error:
                failed.append(f"IPv{tables.family}: {error}")
        if failed:
            return f"; rolling back failed too ({'; '.join(failed)})"
        return f"; rolled back {' and '.join(dict.fromkeys(undone))}" if undone else ""

    def _remove_from(self, backend: Backend, notes: list[str]) -> list[str]:
        done: list[str] = []
        for family in self.families:
            tables = Xtables(self._runner, backend, family)
            if tables.missing() is not None:
                continue
            try:
                done += _remove_family(tables)
            except NfqGuardError as error:
                notes.append(f"IPv{family} {backend}: not checked: {error}")
        return done


def _queues_of(tables: Xtables) -> list[int]:
    """The queues to which our installed rules lead; for a range, the first."""
    try:
        saved = tables.save()
    except NfqGuardError:
        return []  # without the privilege to read them, a change fails too
    ours = (rule for table in saved.values() for rule in table.rules if is_own(rule.chain))
    leads = (queue_of(rule.text) for rule in ours if rule.target == "NFQUEUE")
    return [int(queues.partition(":")[0]) for queues in leads if queues is not None]


def _readable(tables: Xtables, should: tuple[TableRules, ...]) -> Saved:
    """The installed rules; raises unless all tables that we need can be read.

    Raises:
        UnavailableError: One of them cannot be read.
    """
    saved = tables.save()
    for one in should:
        if one.table in saved and not saved[one.table].readable:
            raise UnavailableError(
                f"IPv{tables.family} table {one.table} was made with nft, and iptables-nft cannot "
                "read it: use --backend legacy or nftables"
            )
    return saved


def _remove_family(tables: Xtables) -> list[str]:
    for attempt in range(1, _ATTEMPTS + 1):
        text = transaction.remove(_readable(tables, wanted(_EVERYTHING, tables.backend)))
        if not text:
            return []
        try:
            tables.restore(text)
        except UnavailableError:
            if attempt == _ATTEMPTS:
                raise
            continue
        return [f"IPv{tables.family} {tables.backend}: removed our chains and jumps"]
    return []


def _leftovers(tables: Xtables) -> list[Difference]:
    """Differences for our rules in a backend that should not have any."""
    try:
        return differences((), tables.save(), tables.family, tables.backend)
    except PrivilegeError:
        # Legacy tables require a capability that the daemon lacks.
        return []


def _summary(found: list[Difference]) -> str:
    """The changes made for these differences, one sentence a kind."""
    kinds = dict.fromkeys(difference.kind for difference in found)
    if not set(kinds) - {Kind.MISSING_CHAIN, Kind.MISSING_JUMP}:
        return "installed our chains and jumps"
    return f"put right: {', '.join(kinds)}"
