# SPDX-License-Identifier: MIT
"""Which policy, which evidence and which rules a daemon gets; the rooms meet here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, final

from nfq_guard.engine import FlowLookup
from nfq_guard.errors import ConfigError, Mistake, NfqGuardError, UnavailableError, UsageError
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.policy.compiled import compile_policy
from nfq_guard.policy.decision import Policy
from nfq_guard.policyfile import read_table
from nfq_guard.service import start
from nfq_guard.service.config import Config, load
from nfq_guard.service.rules import firewall_of
from nfq_guard.service.settings import Settings


@final
class NoFlows:
    """For a kernel in which nothing can be looked up."""

    evidence: Final = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        """Nothing."""
        return [None] * len(tuples)


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
    flows = open_flows(settings, notes)
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


def open_flows(settings: Settings, notes: list[str]) -> FlowLookup:
    """The best evidence to be had; why it is not the kernel's window is added to `notes`."""
    from nfq_guard.flows.ctnetlink import CtnetlinkFlows  # noqa: PLC0415 - ctypes only if needed

    try:
        others = CtnetlinkFlows(settings.zones)
    except (NfqGuardError, OSError) as error:
        notes.append(f"no flow can be looked up: {error}")
        return NoFlows()
    from nfq_guard.flows.bpf import BpfFlows  # noqa: PLC0415 - as above
    from nfq_guard.flows.libbpf import LoadError  # noqa: PLC0415 - as above

    try:
        return BpfFlows(settings.zones, others=others)
    except (LoadError, UnavailableError, OSError) as error:
        notes.append(f"judging without the kernel's window, by ctnetlink: {error}")
        return others
