# SPDX-License-Identifier: MIT
"""Connections through SYNPROXY, beside a daemon that enforces the default policy.

SYNPROXY answers a SYN itself, so conntrack shifts every sequence number of the server by a random
amount afterwards. The daemon must let its handshake pass, and name the bounds in the numbers that
the sender of a packet uses.
"""

import socket
from pathlib import Path

import pytest

from tests.flows.conftest import PORTS, Connection, Connector, Routed, connect, octets, routed
from tests.support.packets import tcp
from tests.support.queue import GuardProcess, wait_for

__all__ = ["connect", "routed"]

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]

_PORT = PORTS["none"]
_RULES = f"""*raw
-A PREROUTING -i lan -p tcp --dport {_PORT} --syn -j CT --notrack
COMMIT
*filter
-A FORWARD -i lan -p tcp --dport {_PORT} -m conntrack --ctstate INVALID,UNTRACKED \
-j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
COMMIT
"""
_OVER = 5000


def _acknowledge_too_much(net: Routed, connection: Connection) -> tuple[int, int]:
    """Send an ACK of the client for data that the server never sent.

    Returns:
        The number that it acknowledges, and the highest one that the client was shown.
    """
    (near, here), (far, there) = (
        connection.client.getsockname()[:2],
        connection.client.getpeername()[:2],
    )
    packets = connection.packets()
    shown = max(packet.end for packet in packets if packet.sport == there)
    own = max(packet.end for packet in packets if packet.sport == here)
    ack = (shown + _OVER) % 2**32
    packet = tcp(octets(near), octets(far), here, there, 0x10, own, ack)
    domain = socket.AF_INET6 if ":" in near else socket.AF_INET
    with (
        net.client.entered(),
        socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        raw.sendto(packet, (far, 0))
    return ack, shown


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("evidence", ["bpf", "kernel-log"])
def test_acknowledgements_of_shifted_numbers(
    routed: Routed, connect: Connector, tmp_path: Path, evidence: str, family: int
) -> None:
    routed.router.sysctl("netfilter.nf_conntrack_tcp_loose", 0)
    routed.router.run("iptables-restore" if family == 4 else "ip6tables-restore", stdin=_RULES)
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nmode = "enforce"\nevidence = "{evidence}"\ncontrol_socket = ""\n'
        "log_interval_s = 0\nlog_allowed = true\n",
        encoding="ascii",
    )
    with GuardProcess(routed.router, tmp_path / "log", "--config", str(config)).ready() as guard:
        (started,) = guard.events("started")
        assert started["evidence"] == evidence
        connection = connect(family, _PORT)
        connection.exchange()
        handshake = len(guard.events("packet_judged"))
        # The answer of the server to the SYN that SYNPROXY repeats, and before it the client's ACK.
        assert {one["reason"] for one in guard.events("packet_judged")} == {"no-entry"}
        ack, shown = _acknowledge_too_much(routed, connection)
        wait_for(lambda: len(guard.events("packet_judged")) > handshake)
        event = guard.events("packet_judged")[-1]
        connection.exchange()
        assert guard.stop() == 0
    assert (event["reason"], event["evidence"], event["ack"]) == ("ack-over", evidence, ack)
    assert event["breach"] == {
        "bound": "ack-over", "actual": ack, "limit": shown, "distance": _OVER,
    }  # fmt: skip
    if evidence == "bpf":
        window = event["window"]
        assert (window["receiver_td_end"], window["acknowledged"]) == (shown, ack)
