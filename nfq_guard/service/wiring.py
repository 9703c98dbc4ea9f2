# SPDX-License-Identifier: MIT
"""Which policy, which evidence and which rules a daemon gets; the rooms meet here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, final

from nfq_guard.engine import FlowLookup
from nfq_guard.errors import NfqGuardError, UnavailableError, UsageError
from nfq_guard.finding import Finding
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.policy.decision import Action, Decision, Policy
from nfq_guard.service import start
from nfq_guard.service.config import Config, load
from nfq_guard.service.rules import firewall_of
from nfq_guard.service.settings import Settings
from nfq_guard.wire.packet import Malformed, Packet, Queued

_LOG: Final = Decision(Action.LOG, "default")


@final
class LogEverything:
    """The policy that records and never interferes."""

    def decide(
        self,
        queued: Queued,  # noqa: ARG002 - the interface's
        packet: Packet | Malformed,  # noqa: ARG002
        snapshot: FlowSnapshot | None,  # noqa: ARG002
        finding: Finding,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> Decision:
        """Always the same."""
        return _LOG


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
    config = load(path)
    settings = override(config.settings)
    if len(settings.queue_numbers) > 1:
        raise UsageError("queues: expected one queue, found several: one worker serves one queue")
    policy = policy_of(config)
    notes: list[str] = []
    flows = open_flows(settings, notes)
    start.run(
        settings,
        source=config.source,
        policy=policy,
        flows=flows,
        rules=None if settings.rules == "none" else firewall_of(settings),
        reload=lambda: policy_of(load(path)),
        notes=notes,
    )


def policy_of(config: Config) -> Policy:
    """The policy that a configuration holds.

    Raises:
        ConfigError: It has mistakes; all of them.
    """
    del config
    return LogEverything()


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
