# SPDX-License-Identifier: MIT
"""The steps from a host's current handling of INVALID packets to the guard, and back."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, final

from nfq_guard.doctor.plan_rules import Moves, Step, rule_moves
from nfq_guard.doctor.rule_model import Table
from nfq_guard.doctor.sysctls import BE_LIBERAL

# Files from which the rules of a packet filter are restored at boot.
RULE_FILES: Final = (
    "/etc/iptables/rules.v4",
    "/etc/iptables/rules.v6",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/ip6tables",
    "/etc/nftables.conf",
)
SYSCTL_FILES: Final = ("/etc/sysctl.conf", "/etc/sysctl.d")
_DROPS: Final = re.compile(r"\bINVALID\b.*\bDROP\b|\binvalid\b.*\bdrop\b")


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
        mode: The mode in that file, `dry-run` or `enforce`.
        running: The mode of the daemon that runs; empty if none does.
        policy: The policy of that daemon.
    """

    config: Path | None
    socket: str = ""
    unit: str = ""
    text: str = ""
    mode: str = "dry-run"
    running: str = ""
    policy: str = ""

    @property
    def enforces(self) -> bool:
        """Whether a daemon runs that applies its policy."""
        return self.running == "enforce"


def plan(
    tables: Sequence[Table],
    sysctls: Mapping[str, str],
    files: Mapping[str, str],
    guard: Guard,
    started: str = "",
) -> Plan:
    """Make the plan.

    Args:
        tables: The tables of all packet filters.
        sysctls: Values by key of `sysctls.KEYS`.
        files: The contents of the existing files of `RULE_FILES` and `SYSCTL_FILES`, by path.
        guard: The guard of the host.
        started: What our rules start on this host, of `tracking.describe`; empty if nothing.
    """
    made = Plan()
    moves = [*rule_moves(tables), *_liberal(sysctls, files)]
    restored = [name for name in RULE_FILES if _DROPS.search(files.get(name, ""))]
    for move in moves:
        made.found += [move.found] if move.found else []
        made.beside += move.beside
    if guard.enforces:
        made.found.append(f"the guard enforces its policy, {guard.policy}")
    if not moves:
        checked = "" if started else ", and windows are checked"
        more = "no other" if guard.enforces else "nothing: no"
        made.found.append(f"{more} rule singles out INVALID packets{checked}")
    made.found += [started] if started else []
    made.beside += _start(guard)
    made.over += _enforce(guard)
    for move in moves:
        made.over += move.over
        made.back += move.back
    for name in restored:
        text = f"{name} restores rules for INVALID packets at boot: {{}}"
        made.over.append(Step(text.format("change them there in the same way")))
        made.back.append(Step(text.format("set them there as they were before")))
    made.back += _stop(guard)
    return made


def _start(guard: Guard) -> Iterator[Step]:
    what = "start the guard in dry-run: it accepts every packet and records what it would drop"
    if guard.enforces:
        yield Step("the guard runs and enforces its policy: there is nothing to try beside it")
        return
    if guard.running:
        yield Step("the guard runs in dry-run already: it accepts every packet")
    elif not guard.unit:
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
    lasts = guard.mode == "enforce" or not guard.unit or guard.config is None
    if guard.enforces and lasts:
        yield Step("the guard applies its policy's verdicts already")
    elif guard.unit and guard.config is not None:
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


def _liberal(sysctls: Mapping[str, str], files: Mapping[str, str]) -> Iterator[Moves]:
    for key in BE_LIBERAL:
        if sysctls.get(key, "0") == "0":
            continue
        name = f"net.{key}"
        pattern = re.compile(rf"(?m)^\s*{_either(name)}\s*=\s*[1-9]")
        at_boot = [file for file in files if pattern.search(files[file])]
        yield Moves(
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
