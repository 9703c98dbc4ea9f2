# SPDX-License-Identifier: MIT
"""The kernel's log texts for packets that break one bound each."""

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.errors import BusyError
from nfq_guard.finding import Reason
from nfq_guard.flow import FlowSnapshot
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.lab.netns import Namespace
from nfq_guard.seqno import add
from tests.flows.conftest import PORTS, Connection, Connector, Routed
from tests.support.kernel_log import KernelLog, is_ignored, reason_of, speaking
from tests.support.lookups import answered
from tests.support.segments import ACK, tcp_ipv4


def test_which_texts_are_of_valid_packets() -> None:
    assert is_ignored("nf_ct_proto_6: ignored ACK under lower bound 17")
    assert is_ignored("nf_ct_proto_6: SEQ is under lower bound 17")
    assert is_ignored("nf_ct_proto_6: 12 bytes more than expected")
    assert not is_ignored("nf_ct_proto_6: ACK is over upper bound 17")


def _inject(net: Routed, connection: Connection, seq: int, ack: int, payload: bytes = b"") -> bytes:
    """Send one segment with the client's address; returns the packet as sent."""
    client, server = connection.client.getsockname(), connection.client.getpeername()
    packet = tcp_ipv4(client[0], server[0], client[1], server[1], seq, ack, ACK, payload)
    with (
        net.client.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        raw.sendto(packet, (server[0], 0))
    return packet


def _read(log: KernelLog, count: int) -> list[tuple[str, bytes]]:
    """The first `count` lines; fails when they do not come in time."""
    found: list[tuple[str, bytes]] = []
    deadline = time.monotonic() + 5
    while len(found) < count:
        found += log.read()
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@pytest.mark.kernel
def test_kernel_says_what_was_broken(routed: Routed, connect: Connector) -> None:
    """A segment far above the window, and one that acknowledges unsent data."""
    connection = connect(4, PORTS["none"])
    connection.exchange()
    with routed.router.entered(), KernelLog() as log, speaking(6):
        flows = BpfFlows()
        flow = _resting(flows, connection)
        assert flow.peers is not None
        client, server = flow.peers
        far = add(client.td_maxend, server.td_maxwin + 10_000)
        over = _inject(routed, connection, far, client.td_maxack, b"late")
        early = add(server.td_end, 5_000)
        unseen = _inject(routed, connection, client.td_end, early)
        lines = _read(log, 2)
        flows.close()
    assert [reason_of(text) for text, _ in lines] == [Reason.SEQ_OVER, Reason.ACK_OVER]
    assert [packet[20:] for _, packet in lines] == [over[20:], unseen[20:]]
    # The bound that it prints is one past the last number that passes.
    bounds = [int(re.findall(r"bound (\d+)", text)[0]) for text, _ in lines]
    assert bounds == [add(client.td_maxend, 1), add(server.td_end, 1)]


@pytest.mark.kernel
def test_invalid_packets_leave_the_window_alone(routed: Routed, connect: Connector) -> None:
    """Without translation; with it, this segment would make the router reset the connection."""
    connection = connect(4, PORTS["none"])
    connection.exchange()
    with routed.router.entered():
        flows = BpfFlows()
        before = _resting(flows, connection)
        assert before.peers is not None
        client, _ = before.peers
        _inject(routed, connection, add(client.td_end, 10_000_000), client.td_maxack, b"x")
        after = _resting(flows, connection)
        flows.close()
    assert after.peers == before.peers


def _resting(flows: BpfFlows, connection: Connection) -> FlowSnapshot:
    """The snapshot once it stays the same for a while."""
    last: FlowSnapshot | None = None
    while True:
        (found,) = answered(flows.lookup([connection.original]))
        assert found is not None
        if last is not None and last.peers == found.peers:
            return found
        last = found
        time.sleep(0.25)


@pytest.mark.kernel
def test_settings_come_back(routed: Routed) -> None:
    setting = Path("/proc/sys/net/netfilter/nf_conntrack_log_invalid")
    with routed.router.entered():
        before = setting.read_text(encoding="ascii")
        with speaking(17):
            assert setting.read_text(encoding="ascii").strip() == "17"
        assert setting.read_text(encoding="ascii") == before


@pytest.mark.kernel
def test_the_group_has_one_reader(namespace: Callable[[str], Namespace]) -> None:
    with namespace("log").entered(), KernelLog() as first:
        assert os.get_blocking(first.fileno()) or first.read() == []
        with pytest.raises(BusyError, match="group 0"):
            KernelLog()
        first.close()
        with KernelLog() as second:
            assert second.read() == []
