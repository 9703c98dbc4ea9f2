# SPDX-License-Identifier: MIT
"""`lookups.py bpf|ctnetlink|none BATCH`: CPU time of a lookup and of a whole judgement, as JSON.

Runs in the router of the bench, on flows that `benchmarks.site` opened there.
"""

import json
import struct
import sys
import time
from typing import Protocol

from nfq_guard.engine import Engine, FlowLookup, Mode
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.policy.default import default_policy
from nfq_guard.wire.packet import Queued

_LOOKUPS = 20_000
_FLOWS = 1000
_HOSTS = 250  # as in benchmarks.site
_IP = bytes.fromhex("450000280000000040060000")
# Far over the window, an acknowledgement of everything, flags ACK and PSH.
_TCP = bytes.fromhex("000403e5000003e95018ffff00000000")


class _Nothing:
    evidence = Evidence.NONE

    def lookup(self, tuples: list[FlowTuple]) -> list[FlowSnapshot | None]:
        return [None] * len(tuples)


class _Work(Protocol):
    def __call__(self, start: int) -> object: ...


def _each(work: _Work, batch: int) -> float:
    """Microseconds of CPU time a packet."""
    for start in range(0, _FLOWS, batch):
        work(start)
    began = time.process_time()
    calls = _LOOKUPS // batch
    for call in range(calls):
        work(call * batch % (_FLOWS - batch))
    return (time.process_time() - began) / (calls * batch) * 1e6


def main() -> None:
    """Measure and print."""
    kind, batch = sys.argv[1], int(sys.argv[2])
    source: FlowLookup = (
        BpfFlows() if kind == "bpf" else CtnetlinkFlows() if kind == "ctnetlink" else _Nothing()
    )
    dst = bytes((10, 210, 0, 1))
    tuples = [
        FlowTuple(6, bytes((10, 200, 0, 1 + one % _HOSTS)), dst, 10_000 + one // _HOSTS, 8080)
        for one in range(_FLOWS)
    ]
    packets = [
        Queued(
            _IP + one.src + one.dst + struct.pack(">HH", one.sport, one.dport) + _TCP,
            0, "inside", "", 0, 0,
        )
        for one in tuples
    ]  # fmt: skip
    if kind != "none" and None in source.lookup(tuples):
        sys.exit("the flows are not there")
    engine = Engine(policy=default_policy(), flows=source, mode=Mode.ENFORCE)
    print(
        json.dumps(
            {
                "lookup_us": _each(
                    lambda start: source.lookup(tuples[start : start + batch]), batch
                ),
                "judgement_us": _each(
                    lambda start: engine.judge(packets[start : start + batch], now=1.0), batch
                ),
                "reason": engine.judge(packets[:1], now=1.0)[0].finding.reason,
            }
        )
    )


main()
