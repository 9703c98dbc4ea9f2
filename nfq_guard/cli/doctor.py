# SPDX-License-Identifier: MIT
"""`nfq-guard doctor`: diagnoses the host and its configuration."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from itertools import chain
from typing import Final

from nfq_guard.cli.options import add_config, add_format
from nfq_guard.cli.terminal import fitted, paint
from nfq_guard.doctor.check import Check, Status, ok, problem
from nfq_guard.doctor.examine import examine
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, ConfigError
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.service.config import ConfigReading, read_config
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.telemetry.palette import Style

_STYLES: Final = {
    Status.OK: Style.GREEN,
    Status.NOTE: Style.CYAN,
    Status.WARNING: Style.YELLOW,
    Status.PROBLEM: Style.RED,
}
_WIDTH: Final = max(len(status) for status in Status)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_config(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print every check; exit status 1 if any is a problem."""
    reading = read_config(args.config)
    if reading.settings is None:
        raise ConfigError(reading.source, reading.mistakes)
    firewall = firewall_of(reading.settings)
    policy = compile_policy(reading.config.model) if reading.config is not None else None
    counts: Counter[Status] = Counter()
    for check in chain(
        [_configuration(reading)], examine(firewall, policy, reading.settings.evidence)
    ):
        counts[check.status] += 1
        sys.stdout.write(_json(check) if args.format == "json" else fitted(check_text(check)))
    if args.format == "text":
        summary = ", ".join(f"{counts[status]} {status}" for status in Status)
        sys.stdout.write(f"\n{summary}\n")
    return EXIT_NOT_FINE if counts[Status.PROBLEM] else EXIT_OK


def _configuration(reading: ConfigReading) -> Check:
    mistakes = reading.mistakes
    if not mistakes:
        return ok("configuration", f"{reading.source}: settings and policy are valid")
    more = f" and {len(mistakes) - 1} more" if len(mistakes) > 1 else ""
    return problem(
        "configuration",
        f"the guard cannot start with this configuration: {reading.source}: {mistakes[0]}{more}",
        "fix the errors that `nfq-guard check` reports",
    )


def _json(check: Check) -> str:
    return json.dumps(asdict(check)) + "\n"


def check_text(check: Check) -> str:
    """A check in one line, and what to do about it in another."""
    status = paint(f"{check.status:<{_WIDTH}}", _STYLES[check.status])
    lines = f"{status}  {check.id}: {check.what}\n"
    if check.todo:
        lines += f"{'':<{_WIDTH}}  -> {check.todo}\n"
    return lines
