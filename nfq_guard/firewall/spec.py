# SPDX-License-Identifier: MIT
"""The specification of our rules, from which they are rendered and verified."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, final

from nfq_guard.errors import UsageError

CHAIN: Final = "NFQ_GUARD"
"""The chain, in the table mangle, that queues INVALID packets to the daemon."""

FALLBACK_CHAIN: Final = "NFQ_GUARD_DROP"
"""The chain, in the table filter, that drops packets not judged (fail mode kernel-drop)."""

NATIVE_TABLE: Final = "nfq_guard"
"""The nftables table, of family inet, with our rules on hosts whose own rules are native."""

NATIVE_CHAIN: Final = "judge"
"""The chain of that table whose last rule leads to the queue."""

OFFLOAD_TABLE: Final = "nfq_guard_offload"
"""The nftables table, of family inet, in which the kernel drops offloaded flows."""

COMMENT: Final = "nfq_guard"
"""The comment on each rule of ours."""

UNJUDGED_MARK: Final = 0x1000
"""The mark bit of a packet that waits for judgment in the fail mode kernel-drop.

Our rules set it right before they queue the packet, and the verdict takes it away again: an
accepted packet is routed and matched by the mark that others gave it.

kube-proxy (0xc000), CNI portmap (0x2000), Calico (0xffff0000), Tailscale (0xff0000), Istio (0x539)
and the AWS CNI (0x80) use other bits. mwan3 has 0x3f00; the doctor's check `rules.mark` finds it.
"""

MAX_RATE_PPS: Final = 1_000_000
"""The resolution of the hashlimit match is one microsecond a packet."""

LAST_QUEUE: Final = 65535
"""The highest number of a queue."""


class Family(IntEnum):
    """An address family, by its IP version."""

    IPV4 = 4
    IPV6 = 6


class Backend(StrEnum):
    """The kernel's packet filter that the iptables programs use."""

    LEGACY = "legacy"
    NFT = "nft"

    @property
    def other(self) -> "Backend":
        """The other backend."""
        return Backend.NFT if self is Backend.LEGACY else Backend.LEGACY


class Native(StrEnum):
    """The packet filter as the program nft uses it, without iptables."""

    NFTABLES = "nftables"


Place = Backend | Native
"""Where our rules are."""


class FailMode(StrEnum):
    """The treatment of INVALID packets that the daemon does not judge.

    These are all packets while it is not running, and those above `max_rate_pps`. OPEN accepts
    them, CLOSED drops them, KERNEL_DROP marks them and drops them by that mark in the table filter.
    """

    OPEN = "open"
    CLOSED = "closed"
    KERNEL_DROP = "kernel-drop"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RulesSpec:
    """The specification.

    Attributes:
        first_queue: The queue, or the lowest of those that share the load.
        last_queue: The highest of them; equal to `first_queue` for one queue.
        cpu_fanout: Choose among several queues by CPU instead of by pair of addresses.
        fail_mode: Treatment of packets that are not judged.
        max_rate_pps: Above this rate packets are shed to the fail mode before they reach the
            queue; both hooks of a family share one bucket. None for no limit.
        offload_entries: Flows that each set of the offload table may hold; None for no table.
        unjudged_mark: Mark bits that KERNEL_DROP sets on a packet before it is queued, and that
            the daemon takes from packets it accepts.
    """

    first_queue: int = 0
    last_queue: int = 0
    cpu_fanout: bool = False
    fail_mode: FailMode = FailMode.OPEN
    max_rate_pps: int | None = None
    offload_entries: int | None = None
    unjudged_mark: int = UNJUDGED_MARK

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: A number is out of range, or the queues are in the wrong order.
        """
        if not 0 <= self.first_queue <= self.last_queue <= LAST_QUEUE:
            queues = f"{self.first_queue}:{self.last_queue}"
            raise UsageError(
                f"queues: expected A:B with 0 <= A <= B <= {LAST_QUEUE}, found {queues}"
            )
        rate = self.max_rate_pps
        if rate is not None and not 1 <= rate <= MAX_RATE_PPS:
            raise UsageError(f"max_rate_pps: expected 1 to {MAX_RATE_PPS}, found {rate}")
        if not 0 < self.unjudged_mark <= 0xFFFFFFFF:
            mark = f"{self.unjudged_mark:#x}"
            raise UsageError(f"unjudged mark: expected 0x1 to 0xffffffff, found {mark}")

    @property
    def burst(self) -> int:
        """Packets above `max_rate_pps` that pass at once: those of a tenth of a second."""
        return max(5, (self.max_rate_pps or 0) // 10)
