# SPDX-License-Identifier: MIT
"""A8 and similar attacks: forged INVALID packets for every live connection."""

import random
import socket
import struct
import time
from typing import Final, NamedTuple

from nfq_guard.flow import IP_CT_TCP_FLAG_BE_LIBERAL, PROTO_TCP, FlowSnapshot, FlowTuple
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from tests.faults.connections import PORT, Connections, Health
from tests.faults.gateway import HOST, PEER, checksummed
from tests.faults.outcome import Outcome, ms
from tests.faults.rig import Rig, Size, rss_kb

_CONNECTIONS: Final = 50
# Flags of forged segments: RST, RST with ACK, ACK, FIN with SYN, SYN with ACK, none.
_FORGED: Final = (0x04, 0x14, 0x10, 0x03, 0x12, 0x00)
# linux/if_ether.h: ETH_P_ALL, which includes outgoing frames.
_ALL: Final = 0x0003
_HEAL: Final = """
[policy]
default = "drop"
on_unknown = "log"
[[policy.rule]]
name = "again"
rate = { over = 1, in_s = 60, by = "segment" }
action = "heal"
"""
_DROP_ALL: Final = """
[policy]
default = "drop"
on_unknown = "drop"
i_know = "drops everything"
"""


class _Round(NamedTuple):
    sent: int
    judged: int
    offloaded: int
    liberal: int
    more_kb: int
    health: Health


def attacked(at: Rig, size: Size, rng: random.Random) -> Outcome:
    """A8."""
    heal = _attack(at, _HEAL, size.packets // 2, rng)
    drop = _attack(at, _DROP_ALL, size.packets // 2, rng)
    broken = heal.health.broken + drop.health.broken
    stall_s = max(heal.health.stall_s, drop.health.stall_s)
    more_kb = max(heal.more_kb, drop.more_kb)
    return Outcome(
        "A8",
        f"{heal.sent + drop.sent} forged packets for {_CONNECTIONS} live connections at a time, "
        "under a policy that heals and drops, and under one that drops all and so offloads",
        "no connection broken, none stalls for 1 s, none left unchecked; 1 MB more at most in the "
        "second half",
        f"{broken} broken, {heal.health.answers + drop.health.answers} numbers answered, longest "
        f"stall {ms(stall_s)}; {heal.judged + drop.judged} INVALID packets judged, "
        f"{heal.offloaded} and {drop.offloaded} flows offloaded, {heal.liberal + drop.liberal} "
        f"directions unchecked, {more_kb} kB more",
        not broken and stall_s <= 1 and not heal.liberal and not drop.liberal and more_kb <= 1024
        and not heal.offloaded and drop.offloaded > 0 and heal.judged > heal.sent // 4,
    )  # fmt: skip


def _attack(at: Rig, policy: str, packets: int, rng: random.Random) -> _Round:
    sent = 0
    lines = ('fail_mode = "closed"', "queue_length = 8192", "offload = true", "offload_after = 5")
    with (
        at.start(*lines, policy=policy, log=f"log{len(policy)}").ready() as guard,
        Connections(at.gateway, _CONNECTIONS) as flows,
    ):
        ports = flows.ports
        numbers = _numbers(at, set(ports))
        memory = 0
        while sent < packets:
            if not memory and sent >= packets // 2:
                memory = rss_kb(guard.process.pid)
            for port in ports:
                # About half the number space away from the right number, outside any window.
                far = [
                    (one + (1 << 31) + rng.randrange(1 << 29)) % (1 << 32) for one in numbers[port]
                ]
                header = struct.pack(
                    "!HHIIBBHHH",
                    *(port, PORT, *far),
                    *(5 << 4, rng.choice(_FORGED), rng.randrange(1 << 16), 0, 0),
                )
                at.gateway.out.sendto(checksummed(header), (HOST, 0))
                sent += 1
            time.sleep(0.005)
        more_kb = rss_kb(guard.process.pid) - memory
        liberal = _liberal(at, ports)
        health = flows.health()
        assert guard.stop() == 0
    (stopped,) = guard.events("stopped")
    return _Round(sent, stopped["packets"], stopped["offloaded_flows"], liberal, more_kb, health)


def _numbers(at: Rig, ports: set[int]) -> dict[int, tuple[int, int]]:
    """Current sequence and acknowledgement numbers of each connection, by the peer's port."""
    found: dict[int, tuple[int, int]] = {}
    with at.gateway.peer.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as tap:
        tap.bind(("p0", _ALL))
        tap.settimeout(5)
        while ports - found.keys():
            header = tap.recv(64)[20:32]
            port, target, sequence, acknowledged = struct.unpack("!HHII", header)
            if target == PORT and port in ports:
                found[port] = sequence, acknowledged
    return found


def _liberal(at: Rig, ports: list[int]) -> int:
    """Number of directions of the connections that conntrack does not check."""
    source, target = map(socket.inet_aton, (PEER, HOST))
    with at.gateway.host.entered():
        flows = CtnetlinkFlows()
    try:
        found = flows.lookup([FlowTuple(PROTO_TCP, source, target, port, PORT) for port in ports])
    finally:
        flows.close()
    entries = [one for one in found if isinstance(one, FlowSnapshot)]
    assert len(entries) == len(ports)
    return sum(
        bool(flags & IP_CT_TCP_FLAG_BE_LIBERAL) for one in entries for flags in one.peer_flags or ()
    )
