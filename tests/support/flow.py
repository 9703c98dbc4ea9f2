# SPDX-License-Identifier: MIT
"""A flow that is driven by lines of a trace."""

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import CTSTATES, FlowTable
from nfq_guard.flow import IPV4, FlowSnapshot, FlowTuple, Peer, TcpState
from tests.fuzz_kernel.compare import Pair, broken_bound, ends_of
from tests.support.trace import PLACES, Ends, Step, parse


class Flow:
    """One flow; its segments are written as in `tests.support.trace`, with relative numbers."""

    def __init__(
        self,
        place: str,
        kernel: KernelRules = KERNEL_6_1,
        sysctls: Sysctls = DEFAULT_SYSCTLS,
        pair: Pair | None = None,
        ends: Ends | None = None,
    ) -> None:
        self.numbers = PLACES[place]
        self._pair = pair
        self._ends = ends or ends_of(IPV4, 0)
        self.table = pair.table if pair else FlowTable(kernel, sysctls)
        self.now = 1000.0
        self._last: Step | None = None

    def see(self, line: str) -> str:
        """The verdict on a segment: "NEW", "INVALID seq-over", "ESTABLISHED ignored state"."""
        step = parse(line, self.numbers)
        if self._pair:
            (outcome,) = self._pair.step_all([(self._ends, step)])
            assert not outcome.differences
        else:
            self.now += step.wait_s
            self.table.track(self._ends.packet(step), self.now)
        table = self.table
        words: list[str] = [CTSTATES[table.ctstate]]
        if table.reason is not None:
            words.append(table.reason)
        if table.ignored is not None:
            words += ["ignored", table.ignored]
        self._last = step
        return " ".join(words)

    def passes(self, *lines: str) -> None:
        """Assert that segments pass one after the other."""
        for line in lines:
            assert self.see(line) in ("NEW", "ESTABLISHED"), line

    def opened(self, window_scale: int | None = None) -> "Flow":
        """Open the flow with a handshake; both windows are 1000 octets, unscaled."""
        options = "" if window_scale is None else f" <sackOK,nop,wscale {window_scale}>"
        self.passes(
            f"> S 0:0(0) win 1000{options}",
            f"< S. 0:0(0) ack 1 win 1000{options}",
            "> . 1:1(0) ack 1 win 1000",
            "< . 1:1(0) ack 1 win 1000",
        )
        return self

    @property
    def over_by(self) -> int:
        """Octets by which the last segment broke its bound, by the flow after it."""
        assert self._last is not None
        breach = broken_bound(self.table, self._ends.packet(self._last), self.table.snapshot())
        assert breach is not None
        return breach.distance

    @property
    def snapshot(self) -> FlowSnapshot | None:
        flow = FlowTuple(6, *self._ends.addresses, *self._ends.ports)
        return self.table.lookup([flow])[0]

    @property
    def state(self) -> str:
        snapshot = self.snapshot
        return TcpState(snapshot.state).name if snapshot else "gone"

    @property
    def timeout_s(self) -> int:
        assert self.snapshot
        return self.snapshot.timeout_s

    def peer(self, arrow: str) -> Peer:
        assert self.snapshot
        assert self.snapshot.peers
        return self.snapshot.peers[arrow == "<"]
