# SPDX-License-Identifier: MIT
"""Which policy, which evidence and which rules a daemon gets; the rooms meet here."""

from collections.abc import Callable
from pathlib import Path

from nfq_guard.errors import ConfigError, Mistake, UsageError
from nfq_guard.flows.open import open_flows
from nfq_guard.policy.compiled import compile_policy
from nfq_guard.policy.decision import Policy
from nfq_guard.policyfile import read_table
from nfq_guard.service import start
from nfq_guard.service.config import Config, load
from nfq_guard.service.rules import firewall_of
from nfq_guard.service.settings import Settings


def serve(path: Path | None, override: Callable[[Settings], Settings]) -> None:
    """Read the configuration and serve until a signal says stop.

    Args:
        path: The file, or None for the one in /etc or the defaults.
        override: What the command line says instead.

    Raises:
        NfqGuardError: Anything that keeps the daemon from serving.
    """
    config, policy = load_all(path)
    settings = override(config.settings)
    if len(settings.queue_numbers) > 1:
        raise UsageError("queues: expected one queue, found several: one worker serves one queue")
    notes: list[str] = []
    flows, lack = open_flows(settings.zones)
    if lack is not None:
        notes.append(lack)
    start.run(
        settings,
        source=config.source,
        policy=policy,
        flows=flows,
        rules=None if settings.rules == "none" else firewall_of(settings),
        reload=lambda: _policy(path),
        notes=notes,
    )


def load_all(path: Path | None) -> tuple[Config, Policy]:
    """The configuration with its policy, ready; arguments as `config.load`.

    Raises:
        ConfigError: with every mistake of either.
    """
    mistakes: list[Mistake] = []
    config = load(path, mistakes)
    reading = read_table(config.policy_table, config.source)
    mistakes += reading.mistakes
    if mistakes or reading.model is None:
        raise ConfigError(config.source, mistakes)
    return config, compile_policy(reading.model)


def _policy(path: Path | None) -> Policy:
    return load_all(path)[1]
