# SPDX-License-Identifier: MIT
"""The diagnosis from an entry afterwards names the cause that the tracker had, by any kernel."""

import random

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KernelRules
from nfq_guard.conntrack.states import CLASS_RST
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.conntrack.table import CT_INVALID, FlowTable
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Reason
from nfq_guard.flow import IPV4, Evidence, FlowSnapshot, Hook, TcpState
from nfq_guard.wire.packet import CHECKSUM_GOOD, SYN, Queued, tuple_of
from tests.fuzz_kernel.compare import broken_bound, ends_of
from tests.fuzz_kernel.generate import next_step, start

HALF_OPEN = (TcpState.SYN_SENT, TcpState.SYN_RECV)


def known_before(flow: FlowSnapshot | None) -> bool:
    """Whether both windows are known and neither end can begin anew."""
    return (
        flow is not None
        and flow.peers is not None
        and all(peer.td_maxwin for peer in flow.peers)
        and flow.state not in HALF_OPEN
    )


@pytest.mark.parametrize(
    "kernel", [KERNEL_5_10, KERNEL_5_15, KERNEL_6_1], ids=lambda kernel: kernel.name
)
def test_random_flows(kernel: KernelRules) -> None:
    rng = random.Random(kernel.name)  # noqa: S311 - chance that comes again
    table = FlowTable(kernel, DEFAULT_SYSCTLS)
    queued = Queued(b"", Hook.PREROUTING, "", "", 0, CHECKSUM_GOOD)
    seen: set[Reason] = set()
    compared = 0
    for serial in range(300):
        ends, numbers, chaos = ends_of(IPV4, serial), start(rng), rng.choice((0.05, 0.4, 0.8))
        snapshot = None
        for _ in range(40):
            step = next_step(rng, snapshot, numbers, chaos)
            packet = ends.packet(step)
            flow = tuple_of(packet)
            assert flow is not None
            before = table.lookup([flow])[0]
            answer = table.track(packet, 0.0)
            snapshot = table.snapshot()
            if answer != CT_INVALID:
                continue
            finding = diagnose(queued, packet, snapshot, Evidence.REPLAY, kernel, DEFAULT_SYSCTLS)
            last_index = snapshot.last_index if snapshot else None
            if finding.reason is Reason.RST_OUTSIDE and last_index == CLASS_RST:
                # It may have stood in the place of an ignored SYN, where it was not held
                # against `td_maxack`.
                continue
            assert finding.reason is table.reason
            if finding.breach:
                assert finding.breach.distance >= 1
                # A SYN, and the first segment of a sender, set the window that they are held to.
                if known_before(before) and not step.flags & SYN:
                    assert finding.breach == broken_bound(table, packet, before)
                    compared += 1
            seen.add(finding.reason)
    assert compared > 100
    assert seen >= {
        Reason.SEQ_OVER, Reason.ACK_OVER, Reason.RST_OUTSIDE, Reason.BAD_TRANSITION,
        Reason.BAD_FLAGS, Reason.NO_ENTRY,
    }  # fmt: skip
    assert ({Reason.SEQ_UNDER, Reason.ACK_UNDER} <= seen) is not kernel.old_segments_pass
