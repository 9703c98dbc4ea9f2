# SPDX-License-Identifier: MIT
"""`nfq-guard doctor`: diagnoses the host and its configuration."""

import argparse
import shlex
import sys
from collections import Counter
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Final, TypedDict

import msgspec

from nfq_guard.cli.options import add_config, add_format
from nfq_guard.cli.terminal import columns, fitted, folded, json_text, paint
from nfq_guard.doctor import collect, host_rules, tracking
from nfq_guard.doctor.check import Check, Status, ok, problem
from nfq_guard.doctor.examine import examine
from nfq_guard.doctor.plan import Guard, Plan, plan
from nfq_guard.doctor.plan_rules import Step
from nfq_guard.errors import (
    EXIT_NOT_FINE,
    EXIT_OK,
    ConfigError,
    NfqGuardError,
    PrivilegeError,
)
from nfq_guard.firewall.xtables import System
from nfq_guard.names import counted, visible
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.service import unit
from nfq_guard.service.config import DEFAULT_PATH, ConfigReading, read_config
from nfq_guard.service.control.client import Client
from nfq_guard.service.control.socket_path import is_here
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.settings import Settings
from nfq_guard.telemetry.palette import Style

_STYLES: Final = {
    Status.OK: Style.GREEN,
    Status.NOTE: Style.CYAN,
    Status.WARNING: Style.YELLOW,
    Status.PROBLEM: Style.RED,
}
# Width of a script.
_SCRIPT: Final = 80
_WIDTH: Final = max(len(status) for status in Status)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the steps to try the guard beside the host's current handling of INVALID "
        "packets, to switch to the guard, and to go back",
    )
    add_config(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print every check; exit status 1 if any is a problem."""
    reading = read_config(args.config)
    if reading.settings is None:
        raise ConfigError(reading.source, reading.mistakes)
    if args.plan:
        made = _plan(args.config or DEFAULT_PATH, reading.settings)
        sys.stdout.write(_plan_json(made) if args.format == "json" else plan_text(made))
        return EXIT_OK
    firewall = firewall_of(reading.settings)
    policy = compile_policy(reading.config.model) if reading.config is not None else None
    counts: Counter[Status] = Counter()
    for check in chain(
        [_configuration(reading, args.config or DEFAULT_PATH)],
        examine(
            firewall,
            policy,
            reading.settings.evidence,
            by_others=reading.settings.rules == "none",
        ),
    ):
        counts[check.status] += 1
        sys.stdout.write(_json(check) if args.format == "json" else fitted(check_text(check)))
    if args.format == "text":
        rest = [counted(counts[status], status) for status in Status if status is not Status.OK]
        sys.stdout.write(f"\n{', '.join([f'{counts[Status.OK]} ok', *rest])}\n")
    return EXIT_NOT_FINE if counts[Status.PROBLEM] else EXIT_OK


def _plan(config: Path, settings: Settings) -> Plan:
    rules = host_rules.read(queues=settings.queue_numbers)
    if rules.problems:
        raise PrivilegeError(f"a plan needs all rules of this host: {rules.problems[0]}")
    sandbox = unit.sandbox_of(config, System())
    known = settings.control_socket not in {"", Settings().control_socket}
    running = _running(settings)
    guard = Guard(
        config=config if config.exists() else None,
        socket=f" --socket {shlex.quote(settings.control_socket)}" if known else "",
        unit="" if sandbox is None else sandbox.unit.removesuffix(".service"),
        text=collect.text(config),
        mode=settings.mode,
        running="" if running is None else running.mode,
        policy="" if running is None else running.policy.source,
    )
    values, files = collect.sysctl_values(), collect.boot_files()
    families = firewall_of(settings).families
    alone = tracking.untracked(rules, families, collect.tracked_flows())
    started = tracking.describe(alone) if alone else ""
    return plan(rules.tables, values, files, guard, started)


class _Policy(msgspec.Struct):
    source: str


class _Running(msgspec.Struct):
    """The part of the status of a daemon on which a plan depends."""

    mode: str
    policy: _Policy


def _running(settings: Settings) -> _Running | None:
    """The daemon with these settings in this network namespace; None if none responds."""
    path = Path(settings.control_socket)
    if not settings.control_socket or not is_here(path):
        return None
    try:
        with Client(path) as client:
            return msgspec.convert(client.request("status"), _Running)
    except (NfqGuardError, msgspec.ValidationError):
        return None


class PlanStepRecord(TypedDict):
    """A step of a plan.

    Attributes:
        what: What it does and why.
        commands: Commands for a root shell; empty if the step cannot be scripted.
        stays: Whether the command keeps running until the end of the plan, in its own terminal.
    """

    what: str
    commands: list[str]
    stays: bool


class PlanRecord(TypedDict):
    """The steps from the host's current handling of INVALID packets to the guard, and back.

    Attributes:
        found: The current handling.
        beside: Steps to try the guard while the current handling stays.
        over: Steps from there to the guard alone.
        back: Steps from any stage to the current handling; each command may be repeated.
    """

    found: list[str]
    beside: list[PlanStepRecord]
    over: list[PlanStepRecord]
    back: list[PlanStepRecord]


def _plan_json(made: Plan) -> str:
    record: PlanRecord = {
        "found": made.found,
        "beside": [_step(step) for step in made.beside],
        "over": [_step(step) for step in made.over],
        "back": [_step(step) for step in made.back],
    }
    return f"{json_text(record)}\n"


def _step(step: Step) -> PlanStepRecord:
    return {"what": step.what, "commands": list(step.commands), "stays": step.stays}


def plan_text(made: Plan) -> str:
    """A plan as a script with comments, whose stages are run one at a time."""
    lines = ["# The host's current handling of INVALID packets:"]
    lines += [line for found in made.found for line in _comment(f"  {found}")]
    for title, steps in (
        ("Try the guard beside it", made.beside),
        ("Switch to the guard", made.over),
        ("Back, from any stage", made.back),
    ):
        lines += ["", f"# {title}"]
        for step in steps:
            lines += _comment(f"- {step.what}{', in another terminal' if step.stays else ''}")
            lines += step.commands
    return "\n".join(visible(line) for line in lines) + "\n"


def _comment(text: str) -> list[str]:
    """A comment of a script, in lines that fit into a terminal."""
    return [f"# {line}" for line in folded(text, min(columns() or _SCRIPT, _SCRIPT) - 2)]


def _configuration(reading: ConfigReading, path: Path) -> Check:
    mistakes = reading.mistakes
    if reading.config is not None and (sandbox := unit.sandbox_of(path, System())) is not None:
        mistakes = tuple(unit.refused(reading.config, sandbox))
    if not mistakes:
        return ok("configuration", f"{reading.source}: settings and policy are valid")
    more = f" and {len(mistakes) - 1} more" if len(mistakes) > 1 else ""
    return problem(
        "configuration",
        f"the guard cannot use this configuration: {reading.source}: {mistakes[0]}{more}",
        "fix the errors that `nfq-guard check` reports",
    )


def _json(check: Check) -> str:
    return f"{json_text(asdict(check))}\n"


def check_text(check: Check) -> str:
    """A check in one line, and the recommended action in another."""
    status = paint(f"{check.status:<{_WIDTH}}", _STYLES[check.status])
    lines = f"{status}  {check.id}: {check.what}\n"
    if check.todo:
        lines += f"{'':<{_WIDTH}}  -> {check.todo}\n"
    return lines
