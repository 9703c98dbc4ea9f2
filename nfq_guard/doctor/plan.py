# SPDX-License-Identifier: MIT
"""The steps from a host's current handling of INVALID packets to the guard, and back."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, final

from nfq_guard.doctor import fate
from nfq_guard.doctor.owners import PLAIN, owner_of
from nfq_guard.doctor.path import Met, Order
from nfq_guard.doctor.rule_model import TAKES
from nfq_guard.doctor.sysctls import BE_LIBERAL
from nfq_guard.firewall import native
from nfq_guard.firewall.saved import split

# Files from which the rules of a packet filter are restored at boot.
RULE_FILES: Final = (
    "/etc/iptables/rules.v4",
    "/etc/iptables/rules.v6",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/ip6tables",
    "/etc/nftables.conf",
)
SYSCTL_FILES: Final = ("/etc/sysctl.conf", "/etc/sysctl.d")
# Chains to which a rule moves that must not hide packets from the guard: they follow every path
# from PREROUTING.
_BEHIND: Final = ("INPUT", "FORWARD")
# A path for a shell; only root can write there.
_KEPT: Final = '"$HOME"/nfq-guard-plan'
_DROPS: Final = re.compile(r"\bINVALID\b.*\bDROP\b|\binvalid\b.*\bdrop\b")


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan.

    Attributes:
        what: What it does and why, in one line.
        commands: Commands for a root shell; empty if the step cannot be scripted.
        stays: Whether the command keeps running until the end of the plan, in its own terminal.
    """

    what: str
    commands: tuple[str, ...] = ()
    stays: bool = False


@final
@dataclass(slots=True)
class Plan:
    """The steps of a host.

    Attributes:
        found: The current handling, one line each.
        beside: Steps to try the guard while the current handling stays.
        over: Steps from there to the guard alone.
        back: Steps from any stage to the current handling; each command may be repeated.
    """

    found: list[str] = field(default_factory=list)
    beside: list[Step] = field(default_factory=list)
    over: list[Step] = field(default_factory=list)
    back: list[Step] = field(default_factory=list)


@final
class Guard(NamedTuple):
    """The guard of the host.

    Attributes:
        config: Its configuration file; None if the defaults apply.
        socket: The option that names its control socket to a command; empty for the default.
        unit: The unit that runs it; empty without one.
        text: The contents of the configuration file.
    """

    config: Path | None
    socket: str = ""
    unit: str = ""
    text: str = ""


class _Moves(NamedTuple):
    """The steps of the plan for one part of the current handling, by stage."""

    found: str
    beside: tuple[Step, ...] = ()
    over: tuple[Step, ...] = ()
    back: tuple[Step, ...] = ()


def plan(
    path: Iterable[Met],
    sysctls: Mapping[str, str],
    files: Mapping[str, str],
    guard: Guard,
    unnamed: Iterable[Met] = (),
) -> Plan:
    """Make the plan.

    Args:
        path: The rules that an INVALID packet of both families meets in every hook.
        sysctls: Values by key of `sysctls.KEYS`.
        files: The contents of the existing files of `RULE_FILES` and `SYSCTL_FILES`, by path.
        guard: The guard of the host.
        unnamed: The path without the rules that name INVALID packets (see `removed`).
    """
    made = Plan()
    moves = [*_rules(path, fate.takers(unnamed)), *_liberal(sysctls, files)]
    restored = [name for name in RULE_FILES if _DROPS.search(files.get(name, ""))]
    for move in moves:
        made.found.append(move.found)
        made.beside += move.beside
    if not moves:
        made.found.append("nothing: no rule singles out INVALID packets, and windows are checked")
    made.beside += _start(guard)
    made.over += _enforce(guard)
    for move in moves:
        made.over += move.over
        made.back += move.back
    for name in restored:
        text = f"{name} restores rules for INVALID packets at boot: {{}} there too"
        made.over.append(Step(text.format("take them out")))
        made.back.append(Step(text.format("put them back")))
    made.back += _stop(guard)
    return made


def _start(guard: Guard) -> Iterator[Step]:
    what = "start the guard in dry-run: it accepts every packet and records what it would drop"
    if not guard.unit:
        words = ["nfq-guard", "run", "--mode", "dry-run"]
        words += [] if guard.config is None else ["--config", str(guard.config)]
        yield Step(what, (shlex.join(words),), stays=True)
    else:
        yield Step(what, (*_mode(guard, "dry-run"), f"systemctl enable --now {guard.unit}"))
    events = "/var/log/nfq-guard/events.jsonl"
    compared = (f"nfq-guard whatif {events} --policy preset:default",) if guard.unit else ()
    yield Step(
        "review what it records, for a day or a week of usual traffic",
        (f"nfq-guard status{guard.socket}", *compared),
    )


def _enforce(guard: Guard) -> Iterator[Step]:
    what = "apply the policy's verdicts, from now on"
    if guard.unit and guard.config is not None:
        yield Step(what, (*_mode(guard, "enforce"), f"systemctl reload {guard.unit}"))
    else:
        yield Step(f"{what} until the guard ends", (f"nfq-guard mode enforce{guard.socket}",))


def _stop(guard: Guard) -> Iterator[Step]:
    if guard.unit:
        yield Step(
            "stop the guard, which removes its rules",
            (f"systemctl disable --now {guard.unit}", *_mode(guard, "dry-run")),
        )
    else:
        yield Step("end `nfq-guard run` with Ctrl-C: it removes its rules")


def _mode(guard: Guard, mode: str) -> tuple[str, ...]:
    """The commands that write a mode into the file."""
    if guard.config is None:
        return ()
    file = shlex.quote(str(guard.config))
    if re.search(r"(?m)^mode\s*=", guard.text):
        return (f"sed -i 's/^mode *=.*/mode = \"{mode}\"/' {file}",)
    if re.search(r"(?m)^\[daemon\]", guard.text):
        return (
            f"grep -q '^mode *=' {file} || sed -i '/^\\[daemon\\]/a mode = \"dry-run\"' {file}",
            f"sed -i 's/^mode *=.*/mode = \"{mode}\"/' {file}",
        )
    return (
        f"grep -q '^\\[daemon\\]' {file} || printf '\\n[daemon]\\nmode = \"dry-run\"\\n' >>{file}",
        f"sed -i 's/^mode *=.*/mode = \"{mode}\"/' {file}",
    )


def _rules(path: Iterable[Met], behind: Mapping[tuple[str, int], Met]) -> Iterator[_Moves]:
    """The steps for each rule that takes INVALID packets."""
    seen: set[tuple[object, ...]] = set()
    for met in path:
        finding = met.finding
        if not finding.state or finding.default or finding.rule.act not in TAKES:
            continue
        if met.order is Order.NEVER:
            continue
        table = finding.table
        # A rule of nftables stands for both families, and for every hook that leads to it.
        family = 0 if table.filter == "nftables" else table.family
        key = (table.filter, family, table.name, finding.chain, finding.rule.text)
        if key not in seen:
            seen.add(key)
            yield _rule(met, behind.get((met.hook, table.family)))


def _rule(met: Met, behind: Met | None) -> _Moves:
    finding = met.finding
    table, rule = finding.table, finding.rule
    native = table.filter == "nftables"
    family = "" if native else f", IPv{table.family}"
    owner = owner_of(finding)
    whose = "" if owner is PLAIN else f" of {owner.name}"
    found = (
        f"a rule{whose} in {table.filter} table {table.name}, chain {finding.chain}{family}: "
        f"{rule.text}"
    )
    hidden = met.order in {Order.BEFORE, Order.UNTRACKED, Order.TIED}
    todo = fate.advice(finding, behind)
    if owner is not PLAIN:
        return _of_owner(found, todo, owner.name, hidden=hidden)
    if behind is not None and not hidden:
        return _Moves(found, over=(Step(f"the rule: {todo}"),))
    if native:
        return _native(met, found, hidden=hidden)
    return _iptables(met, found, hidden=hidden)


def _of_owner(found: str, todo: str, name: str, *, hidden: bool) -> _Moves:
    first = f"the guard sees no packet that the rule of {name} takes before it: {todo}"
    return _Moves(
        found,
        beside=(Step(first),) if hidden else (),
        over=() if hidden else (Step(f"the rule of {name}: {todo}"),),
        back=() if fate.leaves(todo) else (Step(f"set {name} as it was before"),),
    )


def _iptables(met: Met, found: str, *, hidden: bool) -> _Moves:
    finding = met.finding
    table, rule = finding.table, finding.rule
    program = f"{'ip' if table.family == 4 else 'ip6'}tables-{table.filter}"
    words = rule.text if _is_plain(rule.text) else shlex.join(split(rule.text))
    place = 1 + next(n for n, each in enumerate(table.chains[finding.chain]) if each is rule)
    here = f"{program} -w -t {table.name}"
    remove = f"{here} -D {finding.chain} {words}"
    back = Step(
        "put the rule back in its place",
        (
            f"{here} -C {finding.chain} {words} 2>/dev/null || "
            f"{here} -I {finding.chain} {place} {words}",
        ),
    )
    if not hidden or met.hook != "prerouting":
        over = Step("remove the rule: the policy decides instead", (remove,))
        return _Moves(found, over=(over,), back=(back,))
    there = f"{program} -w -t filter"
    moved = tuple(f"{there} -I {chain} 1 {words}" for chain in _BEHIND)
    unmoved = tuple(
        f"! {there} -C {chain} {words} 2>/dev/null || {there} -D {chain} {words}"
        for chain in _BEHIND
    )
    return _Moves(
        found,
        beside=(
            Step(
                "move the rule behind the guard, which would not see the packets", (*moved, remove)
            ),
        ),
        over=(Step("remove the moved rule: the policy decides instead", unmoved),),
        back=(back, Step("remove the moved rule, if it is still there", unmoved)),
    )


def _native(met: Met, found: str, *, hidden: bool) -> _Moves:
    finding = met.finding
    table = finding.table
    if hidden:
        todo = f"give its chain a priority above {native.PRIORITY}, which is the guard's"
        return _Moves(
            found,
            beside=(Step(f"the guard sees no packet that the rule takes before it: {todo}"),),
            over=(Step("remove the rule: the policy decides instead"),),
            back=(Step("put the rule and the priority back"),),
        )
    chain = f"{table.nft_family} {table.name} {finding.chain}"
    kept = f"{_KEPT}-{chain.replace(' ', '-')}.nft"
    return _Moves(
        found,
        over=(
            # The listing of a chain can be loaded again.
            Step(
                "save the chain to a file",
                (f"{{ echo 'flush chain {chain}'; nft list chain {chain}; }} >{kept}",),
            ),
            Step(
                "remove the rule: the policy decides instead",
                (f"nft delete rule {chain} handle {finding.rule.handle}",),
            ),
        ),
        back=(
            Step(
                "load the saved chain, if there is one",
                (f"! test -e {kept} || nft -f {kept}",),
            ),
        ),
    )


def _is_plain(words: str) -> bool:
    """Whether the words of a rule need no quoting in a shell."""
    return re.fullmatch(r"[\w./:,= -]*", words) is not None


def _liberal(sysctls: Mapping[str, str], files: Mapping[str, str]) -> Iterator[_Moves]:
    for key in BE_LIBERAL:
        if sysctls.get(key, "0") == "0":
            continue
        name = f"net.{key}"
        pattern = re.compile(rf"(?m)^\s*{_either(name)}\s*=\s*[1-9]")
        at_boot = [file for file in files if pattern.search(files[file])]
        yield _Moves(
            f"the sysctl {name}={sysctls[key]}: no segment is INVALID for its window",
            over=(
                Step(
                    "let conntrack check windows again, now that the guard judges the packets",
                    (f"sysctl -qw {name}=0", *_in_files(at_boot, name, "0")),
                ),
            ),
            back=(
                Step(
                    "let conntrack pass every segment again",
                    (
                        f"sysctl -qw {name}={sysctls[key]}",
                        *_in_files(at_boot, name, sysctls[key]),
                    ),
                ),
            ),
        )


def _in_files(files: Sequence[str], name: str, value: str) -> tuple[str, ...]:
    return tuple(
        f"sed -i 's|^\\( *{_either(name)} *= *\\).*|\\1{value}|' {shlex.quote(file)}"
        for file in files
    )


def _either(name: str) -> str:
    """A pattern for a sysctl, whose parts are separated by `.` or `/`."""
    return name.replace(".", "[./]")
