# SPDX-License-Identifier: MIT
"""`turns.py LIBRARY`: iterations of the daemon's loop under callgrind, with one packet and many.

Reading, judging, verdict, counters and events, from one wait to the next. The kernel's part is not
counted, but replaced: the queue by UDP sockets, and the lookup by a call that does nothing, whose
results are prepared in advance.
"""

import ctypes
import functools
import gc
import mmap
import os
import socket
import struct
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nfq_guard.engine import Engine, Mode
from nfq_guard.flows import bpf, exchange
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.service.loop import Loop
from nfq_guard.service.worker.packet_ring import PacketRing
from nfq_guard.service.worker.worker import Worker
from nfq_guard.telemetry.limiter import EventLimiter
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink

# Packets per iteration. The sockets' buffers hold the messages of two hundred.
ALONE, MANY = 1, 32
# Only the difference of the two is used, which cancels one-time costs.
SHORT, LONG = 1, 6
_WARM_UP = 64
_CLIENT, _SERVER = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1))
_SEEN_ASSURED_CONFIRMED_SRC_NAT = 0x1E
_MAXACK_SET = 0x20
# `struct answer` of the kernel half.
_ANSWER = struct.Struct("=8B2H6I8I4B2H4s12x4s12xi")


class _Queue:
    """Fake netfilterqueue, which only opens its socket."""

    fd = -1

    def get_fd(self) -> int:
        return self.fd

    def unbind(self) -> None:
        pass


class _Program:
    """Fake BPF program, which always returns the same answers."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, exchange.EXCHANGE_SIZE)
        answers = exchange.EXCHANGE_ANSWERS
        for number in range(exchange.BATCH):
            _ANSWER.pack_into(
                self.memory, answers + number * _ANSWER.size,
                1, 1, 3, 0, 3, 0, 0, 0, 0, 512, _SEEN_ASSURED_CONFIRMED_SRC_NAT, 0, 300,
                2000, 1000, 2000,
                2000, 67_000, 65_535, 1000, 1000, 67_000, 65_535, 2000,
                0, 0, _MAXACK_SET, _MAXACK_SET,
                50_000 + number, 443, _CLIENT, _SERVER, 0,
            )  # fmt: skip
        # Through ctypes, like the real one.
        self.run: Callable[[], int] = functools.partial(
            ctypes.PyDLL(None)["getpid"], 0, ctypes.byref(ctypes.create_string_buffer(64))
        )

    def close(self) -> None:
        pass


def _message(number: int) -> bytes:
    """The kernel's message for a packet far beyond the window of flow `number`."""
    packet = struct.pack(
        ">BBHHHBBH4s4sHHIIBBHHH",
        0x45, 0, 40, 0, 0, 64, 6, 0, _SERVER, _CLIENT,
        443, 50_000 + number, 1_000_000, 2000, 0x50, 0x10, 512, 0, 0,
    )  # fmt: skip
    body = b""
    for kind, value in (
        (1, struct.pack("!IHBx", number + 1, 0x0800, 0)),
        (5, struct.pack("!I", 1)),
        (9, bytes(12)),
        (14, bytes(4)),
        (10, packet),
    ):
        body += struct.pack("=HH", 4 + len(value), kind) + value
    return struct.pack("=IHHIIBBH", 20 + len(body), 0x300, 0, 0, 0, 2, 0, 0) + body


def _pair() -> tuple[socket.socket, socket.socket]:
    """A sender and its receiver, which drops packets that do not fit its buffer."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    receiver.connect(sender.getsockname())
    return sender, receiver


# The rules of the default policy for this reason, without those that heal.
_POLICY: Final[dict[str, object]] = {
    "rule": [
        {"name": "translated", "nat": ["snat", "dnat", "both"], "action": "drop"},
        {"name": "window", "reason": "seq-over", "action": "allow"},
    ],
    "default": "allow",
}


def _worker(directory: Path, queue: socket.socket, budget: int) -> Worker:
    library = types.ModuleType("netfilterqueue")
    library.__dict__.update(NetfilterQueue=_Queue)
    sys.modules["netfilterqueue"] = library
    # The reader takes it from the library.
    _Queue.fd = os.dup(queue.fileno())
    from nfq_guard.nfqueue.reader import QueueReader  # noqa: PLC0415 - not before the stand-in

    sink = LineSink(directory / "log")
    reader = QueueReader(7)
    return Worker(
        reader=reader,
        verdicts=VerdictSender(reader.socket, 7),
        judge=Engine(
            policy=compile_policy(parse_policy(_POLICY, source="benchmark")),
            flows=bpf.BpfFlows(program=_Program()),
            mode=Mode.ENFORCE,
            unjudged_mark=1,
        ),
        stats=Stats(),
        events=EventLog(sink),
        limiter=EventLimiter(interval_s=1e9, events_per_s=1000),
        budget=budget,
        ring=PacketRing(2048),
    )


def _count(library: ctypes.CDLL, directory: Path, packets: int) -> None:
    kernel, queue = _pair()
    worker = _worker(directory, queue, packets)
    with Loop() as loop:
        loop.watch(queue.fileno(), worker.process_batch)
        loop.every(1e6, worker.tick)
        warm_up = _WARM_UP // packets + 1
        for turns in (warm_up, SHORT, LONG):
            for number in range(turns * packets):
                kernel.send(_message(number % packets))
            again = range(turns)
            if turns != warm_up:
                library.counting_begin()
            for _ in again:
                loop.turn(None)
            if turns != warm_up:
                library.counting_end(f"turn-of-{packets} {turns * packets}".encode())
    judged = worker.stats.plain()["judged"]["seq-over"]
    if judged != {"drop": (warm_up + SHORT + LONG) * packets}:
        sys.exit(f"expected seq-over and drop, found {judged}")


def main() -> None:
    """Run both counts."""
    library = ctypes.CDLL(sys.argv[1])
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="nfqg-") as directory:
        for packets in (ALONE, MANY):
            _count(library, Path(directory), packets)


main()
