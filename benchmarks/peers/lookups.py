# SPDX-License-Identifier: MIT
"""`lookups.py bpf|ctnetlink|none BATCH`: CPU time of a lookup and of a whole judgment, as JSON.

Runs in the router of the bench, on flows that `benchmarks.site` opened there.
"""

import json
import struct
import sys
import time
from collections.abc import Callable, Sequence

from nfq_guard.engine import Engine, FlowLookup, Mode
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.policy.default import default_policy
from nfq_guard.wire.packet import Queued

# ctnetlink takes ten times as long.
_LOOKUPS = {"ctnetlink": 5_000}
_FLOWS = 1000
_HOSTS = 250  # as in benchmarks.site
_IP = bytes.fromhex("450000280000000040060000")
# Far over the window, an acknowledgement of everything, flags ACK and PSH.
_TCP = bytes.fromhex("000403e5000003e95018ffff00000000")


class _Nothing:
    @property
    def evidence(self) -> Evidence:
        return Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        return [None] * len(tuples)


def _source(kind: str) -> FlowLookup:
    match kind:
        case "bpf":
            return BpfFlows()
        case "ctnetlink":
            return CtnetlinkFlows()
        case _:
            return _Nothing()


def _each(work: Callable[[int], object], batch: int, count: int) -> float:
    """CPU time in microseconds per packet."""
    for start in range(0, _FLOWS, batch):
        work(start)
    began = time.process_time()
    calls = count // batch
    for call in range(calls):
        work(call * batch % (_FLOWS - batch))
    return (time.process_time() - began) / (calls * batch) * 1e6


def main() -> None:
    """Measure and print."""
    kind, batch = sys.argv[1], int(sys.argv[2])
    source = _source(kind)
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
    count = _LOOKUPS.get(kind, 20_000)

    def look_up(start: int) -> object:
        return source.lookup(tuples[start : start + batch])

    def judge(start: int) -> object:
        return engine.judge(packets[start : start + batch], now=1.0)

    print(
        json.dumps(
            {
                "lookup_us": _each(look_up, batch, count),
                "judgement_us": _each(judge, batch, count),
                "reason": engine.judge(packets[:1], now=1.0)[0].finding.reason,
            }
        )
    )


main()
