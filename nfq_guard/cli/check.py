# SPDX-License-Identifier: MIT
"""`nfq-guard check`: test a configuration or a policy, all mistakes at once."""

import argparse
import platform
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

import msgspec
import orjson

from nfq_guard.cli.doctor import check_text
from nfq_guard.cli.kernel_choice import HELP, kernel_of
from nfq_guard.cli.options import add_format
from nfq_guard.cli.terminal import paint, write_json, write_line, write_whole
from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.doctor import host, host_rules
from nfq_guard.doctor.check import Check, Status
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, EXIT_USAGE, ConfigError, Mistake
from nfq_guard.firewall.xtables import System
from nfq_guard.names import counted, visible
from nfq_guard.policy.decision import Action
from nfq_guard.policy.describe import policy_sentences
from nfq_guard.policy.lint import Caution, cautions
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policy.schema import policy_schema
from nfq_guard.policy.values import split_suggestion
from nfq_guard.policyfile import PRESET_PREFIX, load_policy
from nfq_guard.service import unit
from nfq_guard.service.config import DEFAULT_PATH, DEFAULTS, load_config
from nfq_guard.service.settings import TABLE, Settings
from nfq_guard.telemetry.palette import Style

_BAD: Final = frozenset({Status.WARNING, Status.PROBLEM})

# The limits of heals are numbers a minute.
_MINUTE_S: Final = 60

# One attribute in the docstring of a class: its name and its description.
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help=f"a file, or a preset such as {PRESET_PREFIX}default (default: {DEFAULT_PATH})",
    )
    parser.add_argument(
        "--explain-rule",
        "--explain",
        dest="explain",
        action="store_true",
        help="print the policy in plain sentences",
    )
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of the file, for editors"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if there are warnings")
    parser.add_argument("--quiet", action="store_true", help="print nothing without warnings")
    parser.add_argument(
        "--kernel",
        metavar="RELEASE",
        help=f"warn of rules that can never match on this kernel: {HELP} (default: by the running "
        "one's release)",
    )
    parser.add_argument(
        "--host",
        action="store_true",
        help="show what the other rules of this host do with packets that the policy allows",
    )
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; exit status 0, 1 for warnings with `--strict`, 2 for mistakes."""
    if args.schema:
        write_whole(orjson.dumps(config_schema(), option=orjson.OPT_INDENT_2).decode())
        return EXIT_OK
    kernel = rules_of(platform.release()) if args.kernel is None else kernel_of(args.kernel).rules
    try:
        source, model, settings, of_settings, notes = _read(args.file)
    except ConfigError as error:
        if args.format == "text":
            raise
        mistakes = [_mistake(one) for one in error.mistakes]
        write_json({"source": error.source, "fine": False, "mistakes": mistakes})
        return EXIT_USAGE
    found = [*cautions(model, kernel, settings.evidence), *of_settings]
    on_host = None
    if args.host:
        rules = host_rules.read(queues=settings.queue_numbers)
        on_host = list(host.checks(rules, compile_policy(model)))
    if args.format == "json":
        shown = [*found, *notes]
        write_json(_report(source, model, shown, on_host, explain=args.explain), _plain)
    elif found or notes or not args.quiet:
        _show(source, model, found, notes, explain=args.explain)
    if args.format == "text":
        for check in on_host or ():
            write_line(check_text(check).rstrip())
    bad = bool(found) or any(check.status in _BAD for check in on_host or ())
    return EXIT_NOT_FINE if bad and args.strict else EXIT_OK


def config_schema() -> dict[str, Any]:
    """The JSON Schema of the whole file: `[daemon]` and `[policy]`."""
    (daemon,), definitions = msgspec.json.schema_components(
        [Settings], ref_template="#/$defs/{name}"
    )
    for definition in definitions.values():
        docstring = definition.get("description", "")
        definition["description"] = docstring.partition("\n\n")[0]
        for name, text in attributes(docstring).items():
            definition["properties"][name]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of nfq-guard",
        "type": "object",
        "additionalProperties": False,
        "properties": {"daemon": daemon, "policy": policy_schema()},
        "$defs": definitions,
    }


def attributes(docstring: str) -> dict[str, str]:
    """The descriptions of the fields of a class in its docstring, by name."""
    return {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(cleandoc(docstring))}


def _read(
    file: str | None,
) -> tuple[str, PolicyModel, Settings, list[Caution], list[Caution]]:
    """Read a preset, or a configuration file without any mistake.

    Returns its source, its policy, its settings, warnings about these, and notes for a file that no
    unit of this host uses. `evidence` is that of the file only if the policy is in it too.

    Raises:
        ConfigError: It has mistakes, or settings that do not work in the service unit.
    """
    if file is not None and file.startswith(PRESET_PREFIX):
        return file, load_policy(file), Settings(), [], []
    path = None if file is None else Path(file)
    config = load_config(path)
    sandbox = unit.sandbox_of(path or DEFAULT_PATH, System())
    if sandbox is not None:
        mistakes = unit.refused(config, sandbox)
        if mistakes:
            raise ConfigError(config.source, mistakes)
    of_settings = list(_without_effect(config.settings, config.model, config.source))
    if config.model.heals:
        of_settings += _too_few_heals(config.settings, config.source)
    notes: list[Caution] = []
    if sandbox is None:
        notes += unit.cautions(config.settings, config.source)
    else:
        of_settings += unit.unread_pods(config.settings, config.source, sandbox)
    settings = config.settings
    if config.model.source != config.source:
        settings = msgspec.structs.replace(settings, evidence="auto")
    return config.source, config.model, settings, of_settings, notes


def _without_effect(settings: Settings, model: PolicyModel, source: str) -> Iterator[Caution]:
    """Settings that another setting or the policy makes useless."""
    if settings.capture_dir and not settings.capture_packets:
        text = "no file is written: capture_packets = 0 keeps no packet"
        yield Caution(f"{TABLE}.capture_dir", source, "", text)
    healing = next((rule.name for rule in model.rules if rule.action is Action.HEAL), None)
    if settings.offload and healing is not None:
        text = f"no flow is offloaded that rule {healing!r} may heal"
        yield Caution(f"{TABLE}.offload", source, "", text)


def _too_few_heals(settings: Settings, source: str) -> Iterator[Caution]:
    """Heals that do not last for the whole minute of a flow whose window stays lost."""
    name = "heal_flow_per_minute"
    if settings.heal_per_minute < settings.heal_flow_per_minute:
        name = "heal_per_minute"
    heals, lasts_s = getattr(settings, name), settings.heal_timeout_s
    if heals * lasts_s < _MINUTE_S:
        text = (
            f"an active flow whose window stays lost is healed for {heals * lasts_s:g} s of a "
            f"minute, and its packets are dropped for the rest: {name} = {heals} allows "
            f"{counted(heals, 'heal')} of {lasts_s:g} s; expected a product of at least {_MINUTE_S}"
        )
        yield Caution(f"{TABLE}.heal_timeout_s", source, "", text)


class MistakeRecord(TypedDict):
    """One mistake.

    Attributes:
        key: Dotted path into the file; empty for the whole file.
        expected: The values that are accepted.
        found: The value in the file.
        suggestion: A similar valid value; empty without one.
        line: Its line, from 1, in the included file if `key` names one; 0 if unknown.
    """

    key: str
    expected: str
    found: str
    suggestion: str
    line: int


def _mistake(mistake: Mistake) -> MistakeRecord:
    found, of_found = split_suggestion(mistake.found)
    expected, of_expected = split_suggestion(mistake.expected)
    return {
        "key": mistake.key,
        "expected": expected,
        "found": found,
        "suggestion": of_found or of_expected,
        "line": mistake.line,
    }


class ReportRecord(TypedDict):
    """The result of `check`.

    Attributes:
        source: The file or preset.
        fine: Whether it can be used.
        rules: Number of rules; absent with mistakes.
        mistakes: All mistakes.
        warnings: Rules and settings that deserve a look, also those that matter only to the service
            unit, for a file that it does not use: `--strict` ignores these. Absent with mistakes.
        sentences: The policy in plain sentences, with `--explain-rule`.
        host: The effect of the host's other rules on allowed packets, with `--host`; checks as in
            `doctor --format json`.
    """

    source: str
    fine: bool
    rules: NotRequired[int]
    mistakes: list[MistakeRecord]
    warnings: NotRequired[list[Caution]]
    sentences: NotRequired[list[str]]
    host: NotRequired[list[Check]]


def _report(
    source: str,
    model: PolicyModel,
    found: list[Caution],
    on_host: list[Check] | None,
    *,
    explain: bool,
) -> ReportRecord:
    report: ReportRecord = {
        "source": source,
        "fine": True,
        "rules": len(model.rules),
        "mistakes": [],
        "warnings": found,
    }
    if explain:
        report["sentences"] = policy_sentences(model)
    if on_host is not None:
        report["host"] = on_host
    return report


def _plain(value: object) -> object:
    if isinstance(value, Caution):
        return value._asdict()
    raise TypeError


def _show(
    source: str,
    model: PolicyModel,
    found: list[Caution],
    notes: list[Caution],
    *,
    explain: bool,
) -> None:
    for warning in found:
        label = paint("warning:", Style.YELLOW, stream=sys.stderr)
        sys.stderr.write(f"{label} {visible(f'{warning.source}: {warning}')}\n")
    for note in notes:
        sys.stderr.write(f"note: {visible(f'{note.source}: {note}')}\n")
    if explain:
        for sentence in policy_sentences(model):
            write_line(sentence)
        return
    rules = counted(len(model.rules), "rule")
    said = "" if model.source == source else f" of {model.source}, as the file has no [policy]"
    if source == DEFAULTS:
        said = f" of {model.source}; {DEFAULT_PATH} does not exist"
    write_line(f"{source}: {paint('fine', Style.GREEN)}, {rules}{said}")
