# SPDX-License-Identifier: MIT
"""Compares the speed of `nfq-guard replay` and of tshark's TCP analysis on one capture.

    python benchmarks/replay.py [--packets N] [--flows N] [--repeat N] [--tree DIR] [--json FILE]

The two run in turns, and the median of the ratios counts, because other load on the machine slows
both. CPU seconds, user and system, of the whole process with its start. The growth table shows
that our time is linear in packets, and does not depend on how many flows they belong to.
`--tree` is where the package is unpacked, such as `build/compiled`; the source tree by default.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

ROOT: Final = Path(__file__).resolve().parent.parent
TSHARK: Final = ("tshark", "-n", "-r", "{capture}", "-Y", "tcp.analysis.flags")
GUARD: Final = (sys.executable, "-m", "nfq_guard", "replay", "--summary", "{capture}")
# tshark does not verify TCP checksums by default, so neither side does here.
GUARD_ALIKE: Final = (*GUARD, "--checksum", "ignore")
CONTESTANTS: Final = {
    "nfq-guard replay": GUARD,
    "nfq-guard replay, no checksums": GUARD_ALIKE,
    "tshark": TSHARK,
}
SYN_OPTIONS: Final = b"\x02\x04\x05\xb4\x04\x02\x01\x03\x03\x07\x00\x00"
MACS: Final = b"\x02\0\0\0\0\1\x02\0\0\0\0\2\x08\0"
SERVER: Final = b"\xc0\xa8\x00\x01"
DATA: Final = bytes(range(256)) * 6


@dataclass(slots=True)
class Flow:
    """The state of one flow of the capture."""

    client: bytes
    port: int
    numbers: list[int]


def internet_sum(octets: bytes) -> int:
    """The checksum of RFC 1071."""
    padded = octets + bytes(len(octets) & 1)
    return ~(int.from_bytes(padded, "big") % 0xFFFF) & 0xFFFF


def frame(flow: Flow, side: int, flags: int, length: int, options: bytes = b"") -> bytes:
    """Build the next Ethernet frame of a flow, with checksums."""
    src, dst = (flow.client, SERVER) if side == 0 else (SERVER, flow.client)
    sport, dport = (flow.port, 443) if side == 0 else (443, flow.port)
    data_offset = (20 + len(options)) << 2
    payload = DATA[:length]
    seq, ack = flow.numbers[side], flow.numbers[1 - side] if flags & 16 else 0
    window = 64240 if flags & 2 else 502
    head = struct.pack("!HHIIBBH", sport, dport, seq, ack, data_offset, flags, window)
    size = 20 + len(options) + length
    pseudo = src + dst + struct.pack("!HH", 6, size)
    tail = options + payload
    field = internet_sum(pseudo + head + bytes(4) + tail)
    segment = head + struct.pack("!HH", field, 0) + tail
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0x4000, 64, 6, 0) + src + dst
    ip = ip[:10] + struct.pack("!H", internet_sum(ip)) + ip[12:]
    flow.numbers[side] = (seq + length + (flags >> 1 & 1) + (flags & 1)) & 0xFFFFFFFF
    return MACS + ip + segment


def write_capture(file: BinaryIO, packets: int, flows: int) -> int:
    """Healthy flows, all open at once: handshake, data and acknowledgements in turns, close.

    Returns:
        How many packets they are, close to `packets`.
    """
    file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
    each = max(packets // flows, 7)
    table = [
        Flow(b"\x0a" + struct.pack("!I", number)[1:], 1024 + number % 60000, [number * 7919, 5])
        for number in range(flows)
    ]
    for flow in table:
        flow.numbers[0] &= 0xFFFFFFFF
    now_us = 1_700_000_000_000_000
    for step in range(each):
        for flow in table:
            if step == 0:
                octets = frame(flow, 0, 2, 0, SYN_OPTIONS)
            elif step == 1:
                octets = frame(flow, 1, 18, 0, SYN_OPTIONS)
            elif step == 2:
                octets = frame(flow, 0, 16, 0)
            elif step >= each - 3:
                octets = frame(flow, (step - each) % 3 % 2, 16 if step == each - 1 else 17, 0)
            elif step % 2:
                octets = frame(flow, 1, 24, 100 if step % 4 == 1 else 1448)
            else:
                octets = frame(flow, 0, 16, 0)
            now_us += 10
            head = struct.pack("<IIII", *divmod(now_us, 1_000_000), len(octets), len(octets))
            file.write(head + octets)
    return each * flows


def cpu_seconds(command: Sequence[str], capture: Path, tree: Path) -> float:
    """User and system CPU time of one run."""
    words = [word.format(capture=capture) for word in command]
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd="/",
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{words[0]} ended with {process.returncode}"
    return usage.ru_utime + usage.ru_stime


def is_compiled(tree: Path) -> bool:
    """Whether the package in `tree` has its packet path compiled."""
    return any(tree.glob("nfq_guard/replay/replayer.*.so"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packets", type=int, default=400_000)
    parser.add_argument("--flows", type=int, default=2_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    tree = args.tree.resolve()
    assert shutil.which("tshark"), "needs tshark (Debian package tshark)"
    with tempfile.TemporaryDirectory(prefix="nfqg-bench-") as folder:
        capture = Path(folder) / "capture.pcap"
        with capture.open("wb") as file:
            write_capture(file, args.packets, args.flows)
        runs: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for _ in range(args.repeat):
            for name, command in CONTESTANTS.items():
                runs[name].append(cpu_seconds(command, capture, tree))
        growth = []
        for factor, flows in ((1, 1), (2, 1), (4, 1), (1, 4), (1, 16)):
            packets, flow_count = args.packets // 4 * factor, args.flows // 4 * flows
            with capture.open("wb") as file:
                packets = write_capture(file, packets, flow_count)
            seconds = min(cpu_seconds(GUARD, capture, tree) for _ in range(2))
            growth.append({"packets": packets, "flows": flow_count, "cpu_s": round(seconds, 3)})
    rows = {
        name: {
            "cpu_s": round(statistics.median(seconds), 3),
            "packets_per_s": round(args.packets / statistics.median(seconds)),
            "times_tshark": round(
                statistics.median(b / a for a, b in zip(seconds, runs["tshark"], strict=True)), 2
            ),
        }
        for name, seconds in runs.items()
    }
    kind = "compiled" if is_compiled(tree) else "not compiled"
    print(f"{args.packets:,} packets, {args.flows:,} flows, median of {args.repeat}, {kind}\n")
    print(f"{'':<34} {'CPU s':>8} {'packets/s':>10} {'x tshark':>9}")
    for name, row in rows.items():
        print(f"{name:<34} {row['cpu_s']:>8} {row['packets_per_s']:>10,} {row['times_tshark']:>9}")
    print(f"\n{'packets':>10} {'flows':>8} {'CPU s':>8} {'us/packet':>10}")
    for line in growth:
        each_us = line["cpu_s"] / line["packets"] * 1e6
        print(f"{line['packets']:>10,} {line['flows']:>8,} {line['cpu_s']:>8} {each_us:>10.2f}")
    result = {
        "compiled": is_compiled(tree),
        "packets": args.packets,
        "flows": args.flows,
        "runs": rows,
        "growth": growth,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
