# SPDX-License-Identifier: MIT
"""The configuration file: the tables `[daemon]` and `[policy]`, loaded whole or refused whole.

The daemon, `check` and `doctor` all use `read_config`, so the daemon starts with every
configuration that `check` accepts.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, final

from nfq_guard.engine import Mode
from nfq_guard.errors import ConfigError, Mistake
from nfq_guard.policy.decision import Policy
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.model import POLICY_KEYS, RESERVED_NAMES, PolicyModel
from nfq_guard.policy.values import shown, suggestion
from nfq_guard.policyfile import (
    ReadFile,
    read_file,
    read_shadow,
    read_table,
    read_toml,
    with_lines,
)
from nfq_guard.service.settings import RELOADED, TABLE, Settings, parse_settings
from nfq_guard.service.status import PolicyFacts

DEFAULT_PATH: Final = Path("/etc/nfq-guard/nfq-guard.toml")
# The source of a configuration without a file.
DEFAULTS: Final = "defaults"
_POLICY_TABLE: Final = "policy"

Override = Callable[[Settings], Settings]
"""Applies the command line to the settings of a file."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A configuration without mistakes.

    Attributes:
        source: The file as the operator named it, or `defaults`.
        settings: The table `[daemon]`.
        model: The table `[policy]`, or the default policy of a file without one.
        shadow: The policy on trial, named by the setting `shadow`; None without one.
        files: The content of every file that was read, by path.
        is_empty: Whether the file has no table, so that all settings are the defaults.
    """

    source: str
    settings: Settings
    model: PolicyModel
    shadow: CompiledPolicy | None
    files: Mapping[str, bytes]
    is_empty: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReading:
    """The result of reading a file, with every mistake in it.

    Attributes:
        source: The file as the operator named it, or `defaults`.
        settings: The table `[daemon]`; None if that table, or the file outside of both tables, has
            mistakes.
        config: The whole configuration; None if it has any mistake.
        mistakes: All mistakes of the settings, of the policy and of the policy on trial.
    """

    source: str
    settings: Settings | None
    config: Config | None
    mistakes: tuple[Mistake, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A policy ready for adoption, with the one on trial.

    Attributes:
        policy: The compiled policy, including the policy on trial.
        facts: Facts about the acting policy.
        mode: The mode of the command line, or else of the file.
        shadow: Facts about the policy on trial; None without one.
        heals: Whether a rule of the acting policy heals.
        rule_names: Names of the rules of the acting policy, including the built-in ones.
        restart_for: Names of settings that changed in the file and require a restart.
        files: The content of every file that was read, by path.
        empty: The file if it has no table, so that all settings are the defaults; else empty.
    """

    policy: Policy
    facts: PolicyFacts
    mode: Mode
    shadow: PolicyFacts | None = None
    restart_for: tuple[str, ...] = ()
    heals: bool = False
    rule_names: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    empty: str = ""

    @property
    def digest(self) -> str:
        """The digest of both policies together."""
        return self.facts.digest + ("" if self.shadow is None else self.shadow.digest)


def read_config(path: Path | None, read: ReadFile = read_file) -> ConfigReading:
    """Read a configuration and collect every mistake in it.

    Args:
        path: The file; None for the one in /etc, or the defaults if that does not exist.
        read: Reads each file.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    files: dict[str, bytes] = {}

    def kept(name: str | Path) -> bytes:
        key = str(name)
        if key not in files:
            files[key] = read(name)
        return files[key]

    tables = _read_tables(path, kept)
    reading = read_table(tables.policy, tables.source, kept)
    mistakes = [*tables.mistakes, *reading.mistakes]
    shadow = read_shadow(tables.settings.shadow, tables.source, mistakes, kept)
    config = None
    if reading.model is not None and not mistakes:
        config = Config(
            source=tables.source,
            settings=tables.settings,
            model=reading.model,
            shadow=shadow,
            files=files,
            is_empty=tables.is_empty,
        )
    return ConfigReading(
        source=tables.source,
        settings=None if tables.mistakes else tables.settings,
        config=config,
        mistakes=tuple(with_lines(mistakes, files.get(tables.source, b""), files)),
    )


def load_config(path: Path | None, read: ReadFile = read_file) -> Config:
    """Load a configuration; arguments as `read_config`.

    Raises:
        ConfigError: With every mistake.
    """
    reading = read_config(path, read)
    if reading.config is None:
        raise ConfigError(reading.source, reading.mistakes)
    return reading.config


def load_settings(path: Path | None) -> Settings:
    """Load only the settings, even if the policy has mistakes; argument as `read_config`.

    Raises:
        ConfigError: With every mistake outside of the table `[policy]`.
    """
    tables = _read_tables(path, read_file)
    if tables.mistakes:
        raise ConfigError(tables.source, tables.mistakes)
    return tables.settings


def cut_to_nothing(source: str, other: str) -> ConfigError:
    """Why the file `source` without a table is not taken in place of `other`, which has one.

    All its settings would be the defaults, which would end enforcement.
    """
    expected = f"a table [daemon] or [policy], as in {other}"
    found = "none; a line with [daemon] stands for the defaults"
    return ConfigError(source, [Mistake("", expected, found)])


def _unchanged(settings: Settings) -> Settings:
    return settings


def load_policy_for(
    running: Settings, path: Path | None, override: Override = _unchanged
) -> LoadedPolicy:
    """Load the policy for a daemon; arguments as of `prepared`.

    Raises:
        ConfigError: With every mistake of the whole configuration.
    """
    return prepared(load_config(path), running, override)


def prepared(config: Config, running: Settings, override: Override = _unchanged) -> LoadedPolicy:
    """Make the policy of `config` ready for a daemon.

    Args:
        config: The configuration.
        running: The settings of the file with which the daemon runs, or starts.
        override: Applies the command line, whose mode has precedence over the file.
    """
    changed = [
        name
        for name in Settings.__struct_fields__
        if name not in RELOADED and getattr(config.settings, name) != getattr(running, name)
    ]
    return LoadedPolicy(
        policy=compile_policy(config.model, config.shadow),
        facts=_facts(config.model),
        mode=override(config.settings).mode,
        shadow=None if config.shadow is None else _facts(config.shadow.model),
        restart_for=tuple(changed),
        heals=config.model.heals,
        rule_names=(*(rule.name for rule in config.model.rules), *RESERVED_NAMES),
        files=config.files,
        empty=config.source if config.is_empty else "",
    )


def _facts(model: PolicyModel) -> PolicyFacts:
    rules = [
        (rule.name, rule.action, rule.mark, rule.conditions, rule.rate) for rule in model.rules
    ]
    text = repr((rules, model.on_unknown, model.default))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return PolicyFacts(source=model.source, digest=digest, rules=len(model.rules))


def _meant_by(key: str) -> str:
    """A suggestion for a key outside of both tables."""
    for table, keys in ((TABLE, Settings.__struct_fields__), (_POLICY_TABLE, POLICY_KEYS)):
        if key in keys:
            return suggestion(key, (key,)).replace(repr(key), repr(f"{table}.{key}"))
    return suggestion(key, (TABLE, _POLICY_TABLE))


@final
class _Tables(NamedTuple):
    """The tables of a file; the policy is not parsed yet."""

    source: str
    settings: Settings
    policy: dict[str, object] | None
    mistakes: list[Mistake]
    is_empty: bool = False


def _is_absent(path: Path) -> bool:
    """Whether nothing has this name; a link to nothing, or a file out of reach, has it."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _read_tables(path: Path | None, read: ReadFile) -> _Tables:
    if path is None:
        if _is_absent(DEFAULT_PATH):
            return _Tables(DEFAULTS, Settings(), None, [])
        path = DEFAULT_PATH
    if not _is_utf8(path):
        expected = "a path in valid UTF-8, because events and metrics name it"
        raise ConfigError(str(path), [Mistake("", expected, "other bytes in it")])
    document = read_toml(path, read)
    is_empty = not document
    mistakes: list[Mistake] = []
    table = document.pop(TABLE, {})
    policy = document.pop(_POLICY_TABLE, None)
    if not isinstance(table, dict):
        mistakes.append(Mistake(TABLE, "a table", shown(table)))
        table = {}
    settings = parse_settings(table, mistakes)
    mistakes += [
        Mistake(
            key,
            f"the tables [{TABLE}] and [{_POLICY_TABLE}]",
            f"unknown key {shown(key)}{_meant_by(key)}",
        )
        for key in document
    ]
    if policy is not None and not isinstance(policy, dict):
        mistakes.append(Mistake(_POLICY_TABLE, "a table", shown(policy)))
        policy = None
    return _Tables(str(path), settings, policy, mistakes, is_empty)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
