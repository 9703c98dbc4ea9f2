# SPDX-License-Identifier: MIT
"""The flow table: packets in, ctstates out, as the kernel's hook at PREROUTING gives them.

    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    code = table.track(packet, now)
    if code == CT_INVALID:
        finding = diagnose(queued, packet, table.snapshot(), Evidence.REPLAY, kernel, loose)

`track` answers with a number and leaves what else it knows in attributes, because making a value
for each packet would cost more than judging it.
"""

from collections.abc import Sequence
from typing import Final, final

from nfq_guard.conntrack.kernels import KernelRules
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.flow import CtState, Evidence, FlowSnapshot, FlowTuple
from nfq_guard.wire.packet import Malformed, Packet

# What `track` answers; CTSTATES[code] is the word.
CT_NEW: Final = 0
CT_ESTABLISHED: Final = 1
CT_RELATED: Final = 2
CT_INVALID: Final = 3
CT_UNTRACKED: Final = 4
CTSTATES: Final = (
    CtState.NEW,
    CtState.ESTABLISHED,
    CtState.RELATED,
    CtState.INVALID,
    CtState.UNTRACKED,
)


@final
class FlowTable:
    """All flows that were seen and have not expired.

    Attributes:
        ctstate: Of the last packet: what `track` returned.
        ignored: The last packet passed by its flow without a trace ("ignored" in the kernel's log).
        state: `TcpState` number of the last packet's flow after it; 0 without one.
        direction: Of the last packet in its flow; 0 original, 1 reply.
    """

    def __init__(self, kernel: KernelRules, sysctls: Sysctls, capacity: int = 262_144) -> None:
        """An empty table.

        Args:
            kernel: Whose rules hold.
            sysctls: How that kernel is set.
            capacity: Most flows held at once. A scan of ports would fill any table; when it is
                full, expired flows go first, then the oldest that never were ASSURED, then the
                oldest.
        """
        self._kernel = kernel
        self._sysctls = sysctls
        self._capacity = capacity
        self.ctstate = CT_INVALID
        self.ignored = False
        self.state = 0
        self.direction = 0

    def track(
        self,
        packet: Packet | Malformed,
        now: float,
        checksum_ok: bool | None = None,  # noqa: FBT001 - positional on the packet path
    ) -> int:
        """Follow one packet, whole (fragments put together) and in the order of the wire.

        Args:
            packet: As decoded.
            now: Seconds on any clock, not going back by much.
            checksum_ok: Whether the transport checksum is right; None: not to be judged.

        Returns:
            `CT_NEW`, `CT_ESTABLISHED`, `CT_RELATED`, `CT_INVALID` or `CT_UNTRACKED`.
        """
        raise NotImplementedError

    def snapshot(self) -> FlowSnapshot | None:
        """The flow of the last packet as it is after it; None if there is none.

        For an INVALID packet this is the flow that its tuple finds, for an ICMP error the one that
        the packet it quotes belongs to.
        """
        raise NotImplementedError

    @property
    def evidence(self) -> Evidence:
        """Snapshots come from a replay (`engine.FlowLookup`)."""
        return Evidence.REPLAY

    def lookup(self, tuples: Sequence[FlowTuple]) -> Sequence[FlowSnapshot | None]:
        """The flows that tuples belong to, in either direction (`engine.FlowLookup`)."""
        raise NotImplementedError

    def __len__(self) -> int:
        """How many flows it holds, expired ones that nobody asked for among them."""
        raise NotImplementedError
