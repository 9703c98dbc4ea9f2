# SPDX-License-Identifier: MIT
"""The rules in the packet filter that a daemon with these settings needs."""

from collections.abc import Sequence
from typing import Final, Protocol

from nfq_guard.engine import Mode
from nfq_guard.firewall import (
    BOTH_FAMILIES,
    UNJUDGED_MARK,
    Backend,
    Difference,
    FailMode,
    Family,
    Firewall,
    Native,
    Place,
    RuleCounters,
    RulesSpec,
)
from nfq_guard.netlink.owner import is_kept, process_of
from nfq_guard.nfqueue import counters
from nfq_guard.service.settings import Settings

_BACKENDS: Final[dict[str, Place]] = {str(place): place for place in (*Backend, *Native)}
_FAMILIES: Final = {"4": (Family.IPV4,), "6": (Family.IPV6,), "both": BOTH_FAMILIES}


class RulesChange(Protocol):
    """The changes made by `Rules.install` or `Rules.remove`."""

    @property
    def done(self) -> Sequence[str]:
        """One sentence for each change."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes for the operator."""


class Rules(Protocol):
    """The part of `firewall.Firewall` that a daemon uses; every call may raise NfqGuardError.

    Attributes:
        spec: The rules that should be installed; replaced while no call is under way.
    """

    spec: RulesSpec

    def require(self) -> None:
        """Check for programs and kernel features without which they can never be installed."""

    def install(self) -> RulesChange:
        """Install the rules, or repair them."""

    def remove(self) -> RulesChange:
        """Remove the rules."""

    def verify(self) -> Sequence[Difference]:
        """Every difference between the installed and the required rules."""

    def generation(self) -> int | None:
        """A number that changes with the rules; None if the kernel does not report one."""

    def rule_counters(self) -> RuleCounters:
        """The kernel's counters of the rules since they were created."""


def fail_mode_of(settings: Settings) -> FailMode:
    """The treatment of packets that are not judged; dry-run always accepts them."""
    return FailMode.OPEN if settings.mode is Mode.DRY_RUN else FailMode(settings.fail_mode)


def spec_of(settings: Settings) -> RulesSpec:
    """The contents of the rules."""
    queues = settings.queue_numbers
    return RulesSpec(
        first_queue=queues[0],
        last_queue=queues[-1],
        cpu_fanout=settings.cpu_fanout,
        fail_mode=fail_mode_of(settings),
        max_rate_pps=settings.max_rate_pps or None,
        offload_entries=settings.offload_max_entries if settings.offload else None,
    )


def unjudged_mark(settings: Settings) -> int:
    """The mark bits that the rules set on a packet before they queue it; 0 for none."""
    return mark_in(fail_mode_of(settings))


def mark_in(fail_mode: FailMode) -> int:
    """`unjudged_mark` of rules that are installed for a fail mode."""
    return UNJUDGED_MARK if fail_mode is FailMode.KERNEL_DROP else 0


def firewall_of(settings: Settings) -> Firewall:
    """The rules, in the network namespace of the calling thread."""
    backend = _BACKENDS.get(settings.backend)
    return Firewall(
        spec_of(settings), backend, _FAMILIES[settings.families], served_by_others=_served_by_others
    )


def _served_by_others(ours: range) -> dict[int, str]:
    """Queues of this network namespace besides ours, and the process that serves each.

    Without those that systemd keeps for the next start of a service, such as ours when `queue` has
    changed.
    """
    others = {
        queue: process_of(state.port_id)
        for queue, state in counters.all_queues().items()
        if queue not in ours
    }
    return {queue: owner for queue, owner in others.items() if not is_kept(owner)}
