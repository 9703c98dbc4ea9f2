# SPDX-License-Identifier: MIT
"""Long differential runs: `python -m tests.fuzz_kernel --packets 1000000 --seed 1`.

With `--protocol`, it sends packets of SCTP or GRE, or fragments, in place of TCP flows, and prints
the differences.

With `--machine`, the kernel is that of an emulated machine (`tests.kernels`), which gets the
results at the end.

Exit status 1 when anything differed; each such flow, shrunk, is written to a trace file, which the
regression test then includes.
"""

import argparse
import json
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.finding import Ignored
from tests.fuzz_kernel.bodies import SUBJECTS
from tests.fuzz_kernel.campaign import (
    CHUNK_PACKETS,
    RUNNING_KERNEL,
    Tally,
    run_chunk,
    write_trace,
)
from tests.fuzz_kernel.fragments import run_fragments
from tests.fuzz_kernel.others import OthersTally, run_others
from tests.fuzz_kernel.remote import Machine
from tests.support.live import LiveConntrack
from tests.support.root import require_root

_TRACES: Final = Path(__file__).parents[1] / "conntrack" / "traces"
_GIVE_UP_AFTER: Final = 20
# Each chunk has its own sysctls, so a short run has several short chunks.
_CHUNKS_AT_LEAST: Final = 8


def main() -> int:
    """Run chunks until enough packets are compared."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_kernel", description=__doc__)
    parser.add_argument("--packets", type=int, default=1_000_000, help="number of packets in all")
    parser.add_argument("--protocol", choices=("tcp", *SUBJECTS, "fragments"), default="tcp")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first-chunk", type=int, default=0, help="chunk to resume a run at")
    parser.add_argument("--state", type=Path, help="file that keeps the progress of the run")
    parser.add_argument("--traces", type=Path, default=_TRACES, help="directory for failing flows")
    parser.add_argument(
        "--machine", type=int, help="file descriptor of the connection to a machine"
    )
    args = parser.parse_args()
    require_root("fuzz_kernel")
    # An exception, so that the namespace of the chunk is removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if args.protocol != "tcp":
        return _fuzz_others(args.protocol, args.packets, args.seed)
    chunk, done = args.first_chunk, 0
    if args.state and args.state.exists():
        kept = json.loads(args.state.read_text(encoding="ascii"))
        args.seed, chunk, done = kept["seed"], kept["next_chunk"], kept["packets"]
    machine = Machine(Connection(args.machine)) if args.machine is not None else None
    kernel = rules_of(machine.release) if machine else RUNNING_KERNEL
    conntrack = machine.conntrack if machine else LiveConntrack
    size = min(CHUNK_PACKETS, max(1, args.packets // _CHUNKS_AT_LEAST))
    tally = Tally(packets=done)
    begun = time.monotonic()
    while tally.packets < args.packets and len(tally.failures) < _GIVE_UP_AFTER:
        known = len(tally.failures)
        left = args.packets - tally.packets
        run_chunk(args.seed, chunk, tally, min(size, left), kernel, conntrack)
        for number, failure in enumerate(tally.failures[known:], known + 1):
            args.traces.mkdir(parents=True, exist_ok=True)
            path = args.traces / f"seed{args.seed}-chunk{chunk}-{number}.trace"
            write_trace(failure, path)
            sys.stdout.write(f"{path}: {'; '.join(failure.mismatch.what)}\n")
        chunk += 1
        if args.state:
            kept = {"seed": args.seed, "next_chunk": chunk, "packets": tally.packets}
            args.state.write_text(json.dumps(kept) + "\n", encoding="ascii")
        rate = (tally.packets - done) / (time.monotonic() - begun)
        sys.stdout.write(
            f"\rchunk {chunk}: {tally.packets} packets, {len(tally.failures)} mismatches, "
            f"{rate:.0f} packets/s"
        )
        sys.stdout.flush()
    sys.stdout.write("\n")
    _report(tally)
    if machine:
        machine.end(
            {
                "packets": tally.packets,
                "flows": tally.flows,
                "windows": tally.windows,
                "mismatches": [list(failure.mismatch.what) for failure in tally.failures],
            }
        )
    return 1 if tally.failures else 0


def _fuzz_others(name: str, packets: int, seed: int) -> int:
    tally = OthersTally()
    number = 0
    while tally.packets < packets and len(tally.failures) < _GIVE_UP_AFTER:
        size = min(CHUNK_PACKETS, packets - tally.packets)
        if name == "fragments":
            run_fragments(seed, number, tally, size)
        else:
            run_others(name, seed, number, tally, size)
        number += 1
    for failure in tally.failures:
        sys.stdout.write(f"IPv{failure.family}: {'; '.join(failure.what)}\n")
        sys.stdout.write("".join(f"  {step}\n" for step in failure.steps))
    sys.stdout.write(f"{name}: {tally.packets} packets, {tally.flows} flows\n")
    for place, count in sorted(tally.ctstates.items()):
        sys.stdout.write(f"  {CTSTATES[place]:<24} {count}\n")
    for reason, count in tally.causes.most_common():
        sys.stdout.write(f"  {'passed' if reason is None else reason.value:<24} {count}\n")
    sys.stdout.write(f"{len(tally.failures)} mismatches\n")
    return 1 if tally.failures else 0


def _report(tally: Tally) -> None:
    sys.stdout.write(f"{tally.packets} packets, {tally.flows} flows of this run\n")
    for place, count in sorted(tally.ctstates.items()):
        sys.stdout.write(f"  {CTSTATES[place]:<24} {count}\n")
    for cause, count in tally.causes.most_common():
        name = "passed" if cause is None else cause.value
        if isinstance(cause, Ignored):
            name += " (ignored)"
        sys.stdout.write(f"  {name:<24} {count}\n")
    sys.stdout.write(f"{len(tally.failures)} mismatches\n")


if __name__ == "__main__":
    sys.exit(main())
