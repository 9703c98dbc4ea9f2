# SPDX-License-Identifier: MIT
"""The diagnosis from the entry after a packet agrees with the tracker's cause, for any kernel."""

import random

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.conntrack.table import CT_INVALID, FlowTable
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Reason
from nfq_guard.flow import IPV4, Evidence, FlowSnapshot, Hook, TcpState
from nfq_guard.wire.packet import CHECKSUM_GOOD, SYN, Queued, tuple_of
from tests.fuzz_kernel.compare import broken_bound, ends_of
from tests.fuzz_kernel.generate import next_step, start
from tests.support.reason_traces import AFTER_A_SYN
from tests.support.trace import PLACES, parse

HALF_OPEN = (TcpState.SYN_SENT, TcpState.SYN_RECV)


def known_before(flow: FlowSnapshot | None) -> bool:
    """Whether both windows are known and neither end can be re-initialised."""
    return (
        flow is not None
        and flow.peers is not None
        and all(peer.td_maxwin for peer in flow.peers)
        and flow.state not in HALF_OPEN
    )


@pytest.mark.compiled
@pytest.mark.parametrize(
    "kernel", [KERNEL_5_10, KERNEL_5_15, KERNEL_6_1], ids=lambda kernel: kernel.name
)
def test_random_flows(kernel: KernelRules) -> None:
    rng = random.Random(kernel.name)  # noqa: S311 - reproducible, no secret
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
            if finding.reason is not table.reason:
                # An RST after an ignored SYN: both candidates are named.
                assert finding.reason is Reason.RST_OUTSIDE
                assert finding.detail.startswith(f"or {table.reason}, "), finding.detail
                continue
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


@pytest.mark.parametrize("place", PLACES)
def test_an_rst_after_an_ignored_syn(place: str) -> None:
    """The entry afterwards does not show the SYN: both candidates are named."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    queued = Queued(b"", Hook.PREROUTING, "", "", 0, CHECKSUM_GOOD)
    ends = ends_of(IPV4, 1)
    causes: list[Reason | None] = []
    for line in AFTER_A_SYN:
        packet = ends.packet(parse(line, PLACES[place]))
        if table.track(packet, 0.0) == CT_INVALID:
            found = diagnose(
                queued, packet, table.snapshot(), Evidence.REPLAY, KERNEL_6_1, DEFAULT_SYSCTLS
            )
            assert found.reason is Reason.RST_OUTSIDE
            assert found.detail.startswith("or ack-over, if ")
            causes.append(table.reason)
    assert causes == [Reason.ACK_OVER, Reason.RST_OUTSIDE]
