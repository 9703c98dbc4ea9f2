# SPDX-License-Identifier: MIT
"""Which policy, which evidence and which rules a daemon gets; the rooms meet here."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from nfq_guard.errors import ConfigError, Mistake
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policyfile import read_shadow, read_table
from nfq_guard.service import start
from nfq_guard.service.config import Config, load
from nfq_guard.service.firewall_spec import firewall_of
from nfq_guard.service.settings import Settings
from nfq_guard.service.supervisor.workers import Loaded, PolicyFacts


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
    start.run(
        settings,
        source=config.source,
        loaded=_loaded(policy, config, config.settings),
        rules=firewall_of(settings),
        read=lambda: _read(path, config.settings),
    )


def load_all(path: Path | None) -> tuple[Config, CompiledPolicy]:
    """The configuration with its policy, ready; arguments as `config.load`.

    Raises:
        ConfigError: with every mistake of either.
    """
    mistakes: list[Mistake] = []
    config = load(path, mistakes)
    reading = read_table(config.policy_table, config.source)
    mistakes += reading.mistakes
    shadow = read_shadow(config.settings.shadow, config.source, mistakes)
    if mistakes or reading.model is None:
        raise ConfigError(config.source, mistakes)
    return config, compile_policy(reading.model, shadow)


def _read(path: Path | None, before: Settings) -> Loaded:
    config, policy = load_all(path)
    return _loaded(policy, config, before)


def _loaded(policy: CompiledPolicy, config: Config, before: Settings) -> Loaded:
    now = config.settings
    # The shadow comes with its policy.
    changed = [
        name
        for name in now.__struct_fields__
        if name != "shadow" and getattr(now, name) != getattr(before, name)
    ]
    shadow = None if policy.shadow is None else policy.shadow.policy
    return Loaded(
        policy=policy,
        told=_told(policy),
        shadow=_told(shadow) if isinstance(shadow, CompiledPolicy) else None,
        restart_for=tuple(changed),
    )


def _told(policy: CompiledPolicy) -> PolicyFacts:
    model = policy.model
    return PolicyFacts(source=model.source, digest=digest(model), rules=len(model.rules))


def digest(model: PolicyModel) -> str:
    """The same for the same rules in the same order, wherever they are written."""
    said = [(rule.name, rule.action, rule.mark, rule.conditions, rule.rate) for rule in model.rules]
    text = repr((said, model.on_unknown, model.default))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
