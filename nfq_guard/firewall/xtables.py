# SPDX-License-Identifier: MIT
"""Runs the iptables programs, and interprets their output and errors.

They act on the network namespace of the calling thread.
"""

import os
import re
import shutil
import subprocess
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Protocol, final

from nfq_guard import capabilities
from nfq_guard.errors import PrivilegeError, UnavailableError
from nfq_guard.firewall import lock, rule_counters
from nfq_guard.firewall.nft_query import has_table
from nfq_guard.firewall.saved import Saved, parse
from nfq_guard.firewall.spec import Backend, Family, Native, Place

LOCK_WAIT_S: Final = 5
"""Seconds to wait for another program that holds the lock of the tables."""

_TIMEOUT_S: Final = 30
_SIGNATURE: Final = re.compile(r"^ip6?tables\S* v[\d.]+ \(\w+\):(?: |$)")
_OTHER_CHAIN: Final = re.compile(
    r"line (?P<line>\d+): CHAIN_ADD failed \((?:Operation not supported|File exists)\): "
    r"chain (?P<chain>\S+)"
)
_REFUSALS: Final = ("permission denied", "operation not permitted", "you must be root")
_FAMILY_MISSING: Final = (
    "can't initialize",
    "table does not exist",
    "protocol not supported",
    "address family not supported",
)


class Result(NamedTuple):
    """The exit status and the output of a program."""

    status: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Access to the system; tests use a fake."""

    def find(self, program: str) -> bool:
        """Whether the program is installed."""

    def run(self, argv: list[str], stdin: str) -> Result:
        """Run a program to its end."""

    def capabilities(self) -> int:
        """The effective capabilities, as a bit mask."""

    def has_ipv6(self) -> bool:
        """Whether the kernel has IPv6 in this namespace."""

    def has_nft_table(self, name: str) -> bool:
        """Whether nftables has this table of family inet; True also without the privilege."""

    def has_legacy_mangle(self) -> bool:
        """Whether legacy iptables has the table mangle; False if that cannot be read."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the rules (`lock.held`)."""


@final
class System:
    """The programs of this machine.

    A program that was found is not searched again while it is there, and all get the environment of
    the first: both take as long as some of the programs.
    """

    def __init__(self) -> None:
        """Search nothing yet."""
        self._found: dict[str, str] = {}

    def find(self, program: str) -> bool:
        """Whether PATH or an sbin directory contains it."""
        return self._path_of(program) is not None

    def run(self, argv: list[str], stdin: str) -> Result:
        """Run a program with untranslated messages.

        Raises:
            UnavailableError: It did not end in time.
        """
        program = self._path_of(argv[0]) or argv[0]
        try:
            done = subprocess.run(
                [program, *argv[1:]],
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                input=stdin,
                timeout=_TIMEOUT_S,
                env=self._environment,
            )
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{argv[0]} did not end within {_TIMEOUT_S} s") from None
        return Result(done.returncode, done.stdout, done.stderr)

    def capabilities(self) -> int:
        """The capabilities of the calling thread."""
        return capabilities.effective()

    def has_ipv6(self) -> bool:
        """Whether /proc has the file, which exists unless IPv6 is missing or disabled at boot."""
        return Path("/proc/thread-self/net/if_inet6").exists()

    def has_nft_table(self, name: str) -> bool:
        """Query the kernel by netlink."""
        return has_table(name)

    def has_legacy_mangle(self) -> bool:
        """Read the kernel's lists, which `nfq-guard prepare` makes readable for the daemon."""
        names = set()
        for file in ("ip_tables_names", "ip6_tables_names"):
            with suppress(OSError):
                names |= set(Path("/proc/thread-self/net", file).read_text("ascii").split())
        return "mangle" in names

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of this machine."""
        return lock.held()

    @cached_property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C"}

    def _path_of(self, program: str) -> str | None:
        found = self._found.get(program)
        if found is None or not os.access(found, os.X_OK):
            path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
            found = shutil.which(program, path=path)
            if found is not None:
                self._found[program] = found
        return found


@final
class Xtables:
    """The programs of one backend and one family.

    Attributes:
        backend: Which backend.
        family: Which family.
    """

    def __init__(self, runner: Runner, backend: Backend, family: Family) -> None:
        """Store the arguments; nothing is run."""
        self.backend = backend
        self.family = family
        self._runner = runner
        self._base = "iptables" if family is Family.IPV4 else "ip6tables"

    def program(self, suffix: str) -> str | None:
        """The program of this backend with a suffix such as `-save`; None without one.

        If a distribution has only one backend, its programs' names may not contain the backend.
        """
        named = f"{self._base}-{self.backend}{suffix}"
        if self._runner.find(named):
            return named
        plain = f"{self._base}{suffix}"
        if self._runner.find(plain) and flavour(self._runner, self._base) is self.backend:
            return plain
        return None

    def missing(self) -> str | None:
        """Why this family cannot be used with this backend; None if it can."""
        if self.family is Family.IPV6 and not self._runner.has_ipv6():
            return "the kernel has no IPv6 here"
        for suffix in ("-save", "-restore"):
            if self.program(suffix) is None:
                wanted = f"{self._base}-{self.backend}{suffix}"
                return f"program {wanted} (Debian package iptables) is missing"
        return None

    def save(self, *words: str) -> Saved:
        """The installed rules; empty if the kernel has no tables of this family and backend.

        Args:
            words: Options of the program, such as `-t raw`.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program is missing or fails.
        """
        return parse(self.text(*words))

    def rule_counters(self) -> rule_counters.RuleCounters:
        """The kernel's counters of our rules; zeros if it has no tables of this family.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program is missing or fails.
        """
        return rule_counters.parse(self.text("-c"))

    def restore(self, text: str) -> None:
        """Load `text`; rules that it does not contain stay.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: A program, a table or an extension is missing, named if known.
        """
        if text:
            program = self._needed("-restore")
            result = self._load(program, text)
            if result.status:
                raise self._failure(program, result, text)

    def text(self, *words: str) -> str:
        """As `save`, as the program prints it.

        Raises:
            PrivilegeError: The kernel refused.
            UnavailableError: The program is missing or fails.
        """
        program = self._needed("-save")
        result = self._runner.run([program, *words], "")
        if result.status:
            if _says(result.stderr, _FAMILY_MISSING):
                return ""
            raise self._failure(program, result)
        return result.stdout

    def _load(self, program: str, text: str) -> Result:
        return self._runner.run([program, "--noflush", "--wait", str(LOCK_WAIT_S)], text)

    def _needed(self, suffix: str) -> str:
        program = self.program(suffix)
        if program is None:
            why = self.missing() or f"no {self.backend} programs for IPv{self.family}"
            raise UnavailableError(why)
        return program

    def _failure(
        self, program: str, result: Result, text: str = ""
    ) -> PrivilegeError | UnavailableError:
        said = _complaint(result)
        if _says(said, _REFUSALS):
            return PrivilegeError(f"{program} was refused: {said}; {needed_caps(self.backend)}")
        other = _OTHER_CHAIN.search(said)
        if other is not None:
            return UnavailableError(f"{self._no_chain(other, text)} ({program}: {said})")
        blamed = self._unsupported(text) if text else None
        if blamed:
            return UnavailableError(f"IPv{self.family} rules: {blamed} ({program}: {said})")
        return UnavailableError(f"{program}: {said}")

    def _no_chain(self, said: re.Match[str], text: str) -> str:
        """Why the kernel refused a built-in chain: it is there with other settings."""
        before = text.splitlines()[: int(said["line"])]
        table = next((line[1:] for line in reversed(before) if line.startswith("*")), "mangle")
        family = "ip" if self.family is Family.IPV4 else "ip6"
        return (
            f"nftables table {family} {table} has a chain {said['chain']} with another type, hook "
            "or priority than that of iptables, so iptables cannot use the table: rename the "
            "table or the chain, or use the backend nftables or legacy"
        )

    def _unsupported(self, text: str) -> str | None:
        """The kernel option that `text` lacks, found by trying one extension at a time."""
        program = self._needed("-restore")
        chain = "NFQ_GUARD_PROBE"
        for what, option, rule in _EXTENSIONS:
            if rule.split(" --", 1)[0] not in text:
                continue
            probe = f"*mangle\n:{chain} - [0:0]\n-A {chain} {rule}\nCOMMIT\n"
            if self._load(program, probe).status:
                return f"the kernel lacks {what} ({option})"
            self._load(program, f"*mangle\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n")
        return None


_EXTENSIONS: Final = (
    ("conntrack matches", "CONFIG_NETFILTER_XT_MATCH_CONNTRACK", "-m conntrack --ctstate INVALID"),
    ("comments", "CONFIG_NETFILTER_XT_MATCH_COMMENT", "-m comment --comment nfq_guard"),
    ("mark matches", "CONFIG_NETFILTER_XT_MARK", "-m mark --mark 0x1/0x1"),
    (
        "rate limits, which max_rate_pps needs",
        "CONFIG_NETFILTER_XT_MATCH_HASHLIMIT",
        "-m hashlimit --hashlimit-above 5/sec --hashlimit-name nfqgprobe",
    ),
    ("queues", "CONFIG_NETFILTER_XT_TARGET_NFQUEUE", "-j NFQUEUE --queue-num 0"),
)
"""Each extension that our rules use: its name, the kernel option, and a rule that needs only it."""


def flavour(runner: Runner, base: str = "iptables") -> Backend | None:
    """The backend of the plain program, from the output of `-V`; None without the program.

    The output of programs before 1.8 names no backend; they are legacy ones.
    """
    if not runner.find(base):
        return None
    result = runner.run([base, "-V"], "")
    return Backend.NFT if "nf_tables" in result.stdout else Backend.LEGACY


def require_privilege(runner: Runner, backend: Place) -> None:
    """Check the capabilities in advance.

    Raises:
        PrivilegeError: A capability is missing, named.
    """
    wanted = 1 << capabilities.NET_ADMIN
    if backend is Backend.LEGACY:
        wanted |= 1 << capabilities.NET_RAW
    if runner.capabilities() & wanted != wanted:
        raise PrivilegeError(f"the packet filter cannot be read or changed: {needed_caps(backend)}")


def needed_caps(backend: Place) -> str:
    """The capabilities that the kernel and the programs need, as a sentence."""
    if backend is Native.NFTABLES:
        return "nft needs CAP_NET_ADMIN"
    if backend is Backend.NFT:
        return "nft iptables needs CAP_NET_ADMIN"
    return (
        "legacy iptables needs CAP_NET_ADMIN and CAP_NET_RAW, and from users other than root the "
        "group root (for /proc/net/ip_tables_names) and a lock file of their own (XTABLES_LOCKFILE)"
    )


def family_is_missing(error: UnavailableError) -> bool:
    """Whether the kernel lacks the family's packet filter, rather than having refused a rule."""
    return _says(str(error), _FAMILY_MISSING)


def _says(text: str, phrases: tuple[str, ...]) -> bool:
    lowered = text.lower()
    return any(phrase in lowered for phrase in phrases)


def _complaint(result: Result) -> str:
    """The error lines, joined to one, without usage hints."""
    lines = [_SIGNATURE.sub("", line.strip()) for line in result.stderr.splitlines()]
    useful = [line for line in lines if line and not line.startswith(("#", "Try "))]
    return "; ".join(useful) or f"ended with status {result.status}"
