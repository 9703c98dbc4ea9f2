# SPDX-License-Identifier: MIT
"""Compares two sources of evidence: `python -m tests.fuzz_kernel.evidence --packets 20000`.

Random flows pass through the live kernel, and a rule queues their INVALID packets. Each is judged
twice: with the window that BPF reads, and with the kernel's log and an entry without a window. Exit
status 1 when the two disagree, or when a packet is missing from the log.
"""

import argparse
import platform
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.conntrack.states import CLASS_RST
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.window import stands_at_td_end
from nfq_guard.engine import Engine, FlowLookup, Judgment, Mode
from nfq_guard.finding import Reason
from nfq_guard.flow import IPV6, PROTO_ICMP, PROTO_TCP, Evidence, FlowTuple
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.kernel_log import KernelLog
from nfq_guard.nfqueue.reader import QueueReader
from nfq_guard.nfqueue.verdicts import VerdictSender
from nfq_guard.policy.default import default_policy
from nfq_guard.wire.packet import Packet, Queued, Segment
from tests.fuzz_kernel.campaign import conditions_of
from tests.fuzz_kernel.compare import ends_of
from tests.fuzz_kernel.generate import next_step, start
from tests.support.kernel_log import speaking
from tests.support.live import LiveConntrack
from tests.support.packets import A4, A6, B4, B6, C4, C6, error, icmp, ip, udp
from tests.support.root import require_root

_QUEUE: Final = 7
_FLOWS_AT_ONCE: Final = 32
_STEPS_OF_FLOW: Final = 40
_INVALID_OF_CHUNK: Final = 4000
_CHAOS: Final = (0.15, 0.4, 0.8)
_NUMBERED: Final = frozenset({Reason.SEQ_OVER, Reason.ACK_OVER})
_SHOWN: Final = 20


@dataclass(slots=True)
class Tally:
    """The counts of a run.

    Attributes:
        sent: Packets sent.
        invalid: How many of them were INVALID.
        reasons: INVALID packets by the reason that the log gives.
        blind: RSTs whose cause only the log shows: an RST after an ignored SYN has taken the place
            of the SYN in the entry.
        differences: The disagreements, one line per packet.
    """

    sent: int = 0
    invalid: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    blind: int = 0
    differences: list[str] = field(default_factory=list)


class Pair:
    """Both sources, reading one queue."""

    def __init__(self, reader: QueueReader, log: KernelLog, sysctls: Sysctls) -> None:
        self._reader = reader
        self._verdicts = VerdictSender(reader.socket, _QUEUE)
        self._bpf_flows = BpfFlows(others=CtnetlinkFlows())
        self._flows = CtnetlinkFlows()
        self._by_bpf = _engine(self._bpf_flows, None, sysctls)
        self._by_log = _engine(self._flows, log, sysctls)

    def judge(self, tally: Tally) -> None:
        """Judge the packets in the queue with both sources, and compare."""
        while True:
            ids, batch = self._reader.drain(_FLOWS_AT_ONCE * 2)
            if not ids:
                return
            by_bpf = self._by_bpf.judge(batch, now=0.0)
            by_log = self._by_log.judge([_copy(queued) for queued in batch], now=0.0)
            self._verdicts.send(ids, [1] * len(ids), [None] * len(ids))
            for one, other in zip(by_bpf, by_log, strict=True):
                tally.invalid += 1
                tally.reasons[other.finding.reason] += 1
                _compare(one, other, tally)

    def close(self) -> None:
        self._bpf_flows.close()
        self._flows.close()


def _engine(flows: FlowLookup, log: KernelLog | None, sysctls: Sysctls) -> Engine:
    return Engine(
        policy=default_policy(),
        flows=flows,
        log=log,
        mode=Mode.DRY_RUN,
        kernel=guess_rules(platform.release()).rules,
        sysctls=sysctls,
    )


def _copy(queued: Queued) -> Queued:
    return Queued(
        queued.octets, queued.hook, queued.indev, queued.outdev, queued.mark, queued.checksum
    )


def _compare(by_bpf: Judgment, by_log: Judgment, tally: Tally) -> None:
    bpf, log = by_bpf.finding, by_log.finding
    snapshot = by_bpf.snapshot
    if bpf.reason is not log.reason:
        if (
            bpf.reason is Reason.RST_OUTSIDE
            and snapshot is not None
            and snapshot.last_index == CLASS_RST
        ):
            tally.blind += 1
            return
        what = f"reason: bpf {bpf}, log {log}"
    elif log.breach is not None and log.breach != bpf.breach:
        what = f"breach: bpf {bpf.breach}, log {log.breach}"
    elif log.breach is None and log.reason in _NUMBERED and not _stands_at_td_end(by_log):
        what = f"the log has no number: {log}"
    elif by_log.snapshot is not None and (
        by_log.snapshot.evidence is not Evidence.KERNEL_LOG
        and log.reason not in {Reason.ICMP_UNRELATED, Reason.NO_ENTRY}
    ):
        what = f"not in the log: {log}"
    else:
        return
    tally.differences.append(f"{what} {by_bpf.queued.octets.hex()} {snapshot}")


def _stands_at_td_end(judgment: Judgment) -> bool:
    """Whether conntrack checked `td_end` instead of the packet's own number."""
    packet, snapshot = judgment.packet, judgment.snapshot
    return (
        isinstance(packet, Packet)
        and isinstance(packet.l4, Segment)
        and snapshot is not None
        and stands_at_td_end(packet.l4, snapshot.state)
    )


@contextmanager
def _queued(live: LiveConntrack) -> Iterator[QueueReader]:
    """Queue every INVALID packet, after the rules that write its ctstate into the DSCP field."""
    rule = f"-A PREROUTING -i in0 -m conntrack --ctstate INVALID -j NFQUEUE --queue-num {_QUEUE}"
    for restore in ("iptables-restore", "ip6tables-restore"):
        live.space.run(restore, "--noflush", stdin=f"*mangle\n{rule}\nCOMMIT\n")
    with QueueReader(_QUEUE, fail_open=False) as reader:
        yield reader


def run_chunk(seed: int, number: int, tally: Tally, invalid: int) -> None:
    """Run flows in a namespace of their own until `invalid` more packets were INVALID."""
    rng = random.Random(f"evidence {seed}/{number}")  # noqa: S311 - reproducible, no secret
    conditions = conditions_of(rng)
    sysctls = conditions.sysctls
    # Silence of the log is certain: the queue was empty before the log was on.
    clock = iter((0.0,))
    with (
        LiveConntrack(sysctls, reads_log=False) as live,
        KernelLog(
            guess_rules(platform.release()), lambda: True, clock=lambda: next(clock, 100.0)
        ) as log,
        speaking(),
        _queued(live) as reader,
    ):
        pair = Pair(reader, log, sysctls)
        stop_at = tally.invalid + invalid
        serial = 0
        while tally.invalid < stop_at:
            _run_flows(rng, live, pair, conditions.family, serial, tally)
            serial += _FLOWS_AT_ONCE
            for octets in _others(rng, conditions.family):
                live.put(octets)
            pair.judge(tally)
        if log.lost:
            tally.differences.append(f"{log.lost} messages were lost")
        pair.close()


def _run_flows(
    rng: random.Random, live: LiveConntrack, pair: Pair, family: int, serial: int, tally: Tally
) -> None:
    """Run flows in parallel: the queue is read after one segment of each."""
    flows = [
        (ends_of(family, serial + each), start(rng), rng.choice(_CHAOS))
        for each in range(_FLOWS_AT_ONCE)
    ]
    ways = [FlowTuple(PROTO_TCP, *ends.addresses, *ends.ports) for ends, _, _ in flows]
    for _ in range(_STEPS_OF_FLOW):
        snapshots = [live.snapshot(way) for way in ways]
        for (ends, numbers, chaos), snapshot in zip(flows, snapshots, strict=True):
            live.put(ends.octets(next_step(rng, snapshot, numbers, chaos)))
            tally.sent += 1
        pair.judge(tally)


def _others(rng: random.Random, family: int) -> list[bytes]:
    """INVALID packets of other kinds, some of which the kernel does not log."""
    query = rng.randbytes(2) + bytes((0, 1)) + bytes(8)
    port = rng.randrange(1, 60000)
    if family == IPV6:
        return [
            icmp(A6, B6, 129, query),
            error(B6, A6, 1, udp(A6, B6, port, 2)),
            ip(A6, B6, PROTO_TCP, rng.randbytes(19)),
            udp(A6, C6, port, 2)[:-2] + b"\1\2",
        ]
    return [
        icmp(A4, B4, 0, query),
        icmp(A4, B4, 40, query),
        error(B4, A4, 3, udp(A4, B4, port, 2)),
        ip(A4, B4, PROTO_TCP, rng.randbytes(19)),
        ip(A4, C4, PROTO_ICMP, b"\x08\0" + query),
        ip(A4, B4, 17, port.to_bytes(2, "big") + b"\0\2\0\x63\1\2ab"),
    ]


def main() -> int:
    """Run chunks until enough INVALID packets are compared."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_kernel.evidence", description=__doc__
    )
    parser.add_argument("--packets", type=int, default=20_000, help="INVALID packets in all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    require_root("fuzz_kernel.evidence")
    tally = Tally()
    chunk = 0
    while tally.invalid < args.packets and len(tally.differences) < _SHOWN:
        left = args.packets - tally.invalid
        run_chunk(args.seed, chunk, tally, min(_INVALID_OF_CHUNK, left))
        chunk += 1
    for line in tally.differences[:_SHOWN]:
        sys.stdout.write(f"{line}\n")
    reasons = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.most_common())
    sys.stdout.write(
        f"{tally.sent} packets sent, {tally.invalid} INVALID ({reasons}), of {tally.blind} RSTs "
        f"only the log knows the cause, {len(tally.differences)} disagreements\n"
    )
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
