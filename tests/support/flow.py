# SPDX-License-Identifier: MIT
"""A flow to talk to in the words of a trace."""

from typing import Final

from nfq_guard.conntrack import entry, window
from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import CTSTATES, FlowTable
from nfq_guard.flow import IPV4, FlowSnapshot, FlowTuple, Peer, TcpState
from nfq_guard.seqno import distance
from tests.fuzz_kernel.compare import Pair, ends_of
from tests.support.trace import PLACES, Ends, parse

WORDS: Final = {
    entry.CAUSE_NONE: "",
    window.SEQ_OVER: "seq-over",
    window.ACK_OVER: "ack-over",
    window.SEQ_UNDER: "seq-under",
    window.ACK_UNDER: "ack-under",
    window.OVERSHOOT: "overshoot",
    entry.CAUSE_RST_OUTSIDE: "rst-outside",
    entry.CAUSE_BAD_TRANSITION: "bad-transition",
    entry.CAUSE_NO_ENTRY: "no-entry",
    entry.CAUSE_BAD_FLAGS: "bad-flags",
    entry.CAUSE_STATE_IGNORES: "state",
    entry.CAUSE_CHALLENGE_ACK: "challenge-ack",
}


class Flow:
    """One flow; its segments are written as in `tests.support.trace`, numbers relative."""

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

    def see(self, line: str) -> str:
        """Say what a segment is: "NEW", "INVALID seq-over", "ESTABLISHED ignored state"."""
        step = parse(line, self.numbers)
        if self._pair:
            (outcome,) = self._pair.step_all([(self._ends, step)])
            assert not outcome.differences
        else:
            self.now += step.wait_s
            self.table.track(self._ends.packet(step), self.now)
        table = self.table
        words = [CTSTATES[table.ctstate], *(["ignored"] if table.ignored else [])]
        return " ".join((*words, WORDS[table.cause])).rstrip()

    def passes(self, *lines: str) -> None:
        """Assert that segments pass one after the other."""
        for line in lines:
            assert self.see(line) in ("NEW", "ESTABLISHED"), line

    def opened(self, window_scale: int | None = None) -> "Flow":
        """Open it with a handshake; both windows are 1000 octets, not scaled."""
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
        """Octets by which the last segment broke its bound."""
        tcp = self.table.tcp
        return abs(distance(tcp.actual, tcp.limit))

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
