# SPDX-License-Identifier: MIT
"""`lookups.py bpf|ctnetlink|none BATCH`: CPU time of a lookup and of a whole judgement, as JSON.

Runs in the router of the bench, on flows that `benchmarks.site` opened there.
"""

import json
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
_SYN_TO_DATA = "4500002800000000400600000ac800010ad20001"


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
    src, dst = bytes((10, 200, 0, 1)), bytes((10, 210, 0, 1))
    tuples = [FlowTuple(6, src, dst, 10_000 + one, 8080) for one in range(_FLOWS)]
    ip = bytes.fromhex(_SYN_TO_DATA)
    packets = [
        Queued(
            ip
            + (10_000 + one).to_bytes(2, "big")
            + bytes.fromhex("1f90000403e5000003e95018ffff00000000"),
            0, "inside", "", 0, 0,
        )
        for one in range(_FLOWS)
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
