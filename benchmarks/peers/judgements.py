# SPDX-License-Identifier: MIT
"""`judgements.py LIBRARY`: judges fixed packets under callgrind, each kind a short and a long run.

No kernel, no clock, no randomness: every run executes the same instructions.
"""

import ctypes
import gc
import struct
import sys
from collections.abc import Sequence

from nfq_guard.engine import Engine, Mode
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_MAXACK_SET,
    IPS_SRC_NAT,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Peer,
)
from nfq_guard.policy.default import DEFAULT_TABLE, default_policy
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import Queued

BATCH = 32
# Only the difference of the two is used, which cancels the cost of a call.
SHORT, LONG = 10, 60

_CLIENT, _SERVER = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1))
_SYN_FIN, _ACK, _SYN_ACK = 0x03, 0x10, 0x12


class _FixedFlows:
    """Returns the same snapshot for every tuple."""

    def __init__(self, snapshot: FlowSnapshot | None) -> None:
        self._snapshot = snapshot

    @property
    def evidence(self) -> Evidence:
        return Evidence.BPF

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        return [self._snapshot] * len(tuples)


def _packet(number: int, flags: int) -> Queued:
    octets = struct.pack(
        ">BBHHHBBH4s4sHHIIBBHHH",
        0x45, 0, 40, 0, 0, 64, 6, 0, _SERVER, _CLIENT,
        443, 50_000, number, 2000, 0x50, flags, 512, 0, 0,
    )  # fmt: skip
    return Queued(octets, 0, "eth0", "", 0, 1)


def _snapshot() -> FlowSnapshot:
    """A translated flow in ESTABLISHED with windows of 65,535 bytes."""
    there = FlowTuple(6, _CLIENT, _SERVER, 50_000, 443)
    back = FlowTuple(6, _SERVER, _CLIENT, 443, 50_000)
    client = Peer(seq(2000), seq(67_000), 65_535, seq(1000), 0, IP_CT_TCP_FLAG_MAXACK_SET)
    server = Peer(seq(1000), seq(67_000), 65_535, seq(2000), 0, IP_CT_TCP_FLAG_MAXACK_SET)
    return FlowSnapshot(
        Evidence.BPF, 1, there, back, IPS_SRC_NAT | 0xE, 0, 0, 300, 3, (client, server)
    )


def _without_heal() -> CompiledPolicy:
    """The default policy without the rules about flows that conntrack has lost track of."""
    rules = DEFAULT_TABLE["rule"]
    if not isinstance(rules, list):
        raise TypeError
    kept = [rule for rule in rules if rule["name"] not in {"lost-window", "stuck"}]
    return compile_policy(parse_policy({**DEFAULT_TABLE, "rule": kept}, source="benchmark"))


def main() -> None:
    """Judge the packets while callgrind counts."""
    library = ctypes.CDLL(sys.argv[1])
    gc.disable()
    for name, octets, snapshot, policy in (
        ("seq-over", _packet(1_000_000, _ACK), _snapshot(), _without_heal()),
        ("seq-over-heal", _packet(1_000_000, _ACK), _snapshot(), default_policy()),
        ("no-entry", _packet(1000, _SYN_ACK), None, _without_heal()),
        ("bad-flags", _packet(1000, _SYN_FIN), _snapshot(), _without_heal()),
    ):
        engine = Engine(policy=policy, flows=_FixedFlows(snapshot), mode=Mode.ENFORCE)
        batch = [octets] * BATCH
        found = engine.judge(batch, now=1.0)[0].finding.reason
        if not name.startswith(found):
            sys.exit(f"expected {name}, found {found}")
        for _ in range(50):
            engine.judge(batch, now=1.0)
        for calls in (SHORT, LONG):
            again = range(calls)
            library.counting_begin()
            for _ in again:
                engine.judge(batch, now=1.0)
            library.counting_end(f"{name} {calls * BATCH}".encode())


main()
