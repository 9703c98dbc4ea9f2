# SPDX-License-Identifier: MIT
"""The rules that a daemon with these settings needs."""

from typing import Final

from nfq_guard.engine import Mode
from nfq_guard.firewall import (
    BOTH_FAMILIES,
    JUDGED_MARK,
    Backend,
    FailMode,
    Family,
    Firewall,
    RulesSpec,
)
from nfq_guard.service.settings import Settings

_FAMILIES: Final = {"4": (Family.IPV4,), "6": (Family.IPV6,), "both": BOTH_FAMILIES}


def fail_mode_of(settings: Settings) -> FailMode:
    """What becomes of packets that nobody judges: a dry-run harms nobody, alive or dead."""
    return FailMode.OPEN if settings.mode is Mode.DRY_RUN else FailMode(settings.fail_mode)


def spec_of(settings: Settings) -> RulesSpec:
    """What the rules shall do."""
    queues = settings.queue_numbers
    return RulesSpec(
        first_queue=queues[0],
        last_queue=queues[-1],
        cpu_fanout=settings.cpu_fanout,
        fail_mode=fail_mode_of(settings),
        max_rate_pps=settings.max_rate_pps or None,
        offload_entries=settings.offload_max_entries if settings.offload else None,
    )


def judged_mark(settings: Settings) -> int:
    """The mark bits that the rules expect on a judged packet; 0 when they look at none."""
    return JUDGED_MARK if fail_mode_of(settings) is FailMode.KERNEL_DROP else 0


def firewall_of(settings: Settings) -> Firewall:
    """Ready to install, verify and remove them in the namespace of the calling thread."""
    backend = None if settings.backend == "auto" else Backend(settings.backend)
    return Firewall(spec_of(settings), backend, _FAMILIES[settings.families])
