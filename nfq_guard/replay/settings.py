# SPDX-License-Identifier: MIT
"""How a capture is replayed."""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import DEFAULT_CAPACITY
from nfq_guard.replay.checksums import ChecksumMode

# Window scale that is assumed without a SYN: the one that Linux offers by default.
DEFAULT_WSCALE: Final = 7


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How to replay.

    Attributes:
        kernel: The conntrack rules to follow.
        kernel_doubt: Why the requested kernel may follow other rules; empty if it follows these.
        sysctls: The settings of that kernel.
        checksums: What a wrong checksum means.
        capacity: Most flows held at once (`conntrack.table.FlowTable`).
        nat_status: `flow.IPS_SRC_NAT` and `IPS_DST_NAT` bits that are assumed for every flow; a
            capture does not show how the host translated.
        every: Whether `Replayer.replay` returns every frame, not only the INVALID ones.
        watched: Whether the caller reads the packet of each frame from `Replayer.reader`.
        strict: Whether the capture counts as complete: then no finding is in doubt.
        decapsulate: Whether the packets inside tunnels are followed too.
        assumed_wscale: Window scale of streams whose beginning is not in the file.
        settle_after_s: Maximum time that outcomes are held, seconds of capture; 0 for the whole
            capture.
    """

    kernel: KernelRules = KERNEL_6_1
    kernel_doubt: str = ""
    sysctls: Sysctls = DEFAULT_SYSCTLS
    checksums: ChecksumMode = ChecksumMode.AUTO
    capacity: int = DEFAULT_CAPACITY
    nat_status: int = 0
    every: bool = False
    watched: bool = False
    strict: bool = False
    decapsulate: bool = False
    assumed_wscale: int = DEFAULT_WSCALE
    settle_after_s: float = 0.0
