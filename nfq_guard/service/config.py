# SPDX-License-Identifier: MIT
"""The configuration file: `[daemon]` and `[policy]`, read whole or refused whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from nfq_guard.errors import ConfigError, Mistake
from nfq_guard.policyfile import read_toml
from nfq_guard.service.settings import TABLE, Settings, parse_settings, shown

DEFAULT_PATH: Final = Path("/etc/nfq-guard/nfq-guard.toml")
_POLICY_TABLE: Final = "policy"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a file says.

    Attributes:
        source: The file as the operator named it, or `defaults`.
        settings: The daemon's part.
        policy_table: The table `[policy]`, unread; None when the file has none.
    """

    source: str
    settings: Settings
    policy_table: Mapping[str, Any] | None


def load(path: Path | None, mistakes: list[Mistake] | None = None) -> Config:
    """Read a file; without a name the one in /etc, and without that the defaults.

    Args:
        path: As the operator named it, or None.
        mistakes: Where to put what is wrong with values, for a caller that goes on to collect
            those of the policy; without it they are raised.

    Raises:
        ConfigError: The file cannot be read, or is no TOML, or has mistakes.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config(source="defaults", settings=Settings(), policy_table=None)
        path = DEFAULT_PATH
    source = str(path)
    document = read_toml(path)
    found: list[Mistake] = []
    table = document.pop(TABLE, {})
    policy_table = document.pop(_POLICY_TABLE, None)
    if not isinstance(table, dict):
        found.append(Mistake(TABLE, "a table", shown(table)))
        table = {}
    settings = parse_settings(table, found)
    found += [
        Mistake(key, f"the tables [{TABLE}] and [{_POLICY_TABLE}]", f"unknown key {key!r}")
        for key in document
    ]
    if policy_table is not None and not isinstance(policy_table, dict):
        found.append(Mistake(_POLICY_TABLE, "a table", shown(policy_table)))
        policy_table = None
    if mistakes is not None:
        mistakes += found
    elif found:
        raise ConfigError(source, found)
    return Config(source=source, settings=settings, policy_table=policy_table)
