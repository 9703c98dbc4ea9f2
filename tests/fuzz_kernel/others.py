# SPDX-License-Identifier: MIT
"""Sends chunks of random SCTP or GRE flows through both trackers, as `campaign` does with TCP."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.log_text import parse_log
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CT_INVALID, CTSTATES, FlowTable
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Reason
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_SEEN_REPLY,
    IPV4,
    IPV6,
    PROTO_SCTP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
)
from nfq_guard.wire.checksum import checksum_ok
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_UNVERIFIED, Packet, Queued, tuple_of
from tests.fuzz_kernel.bodies import SCTP_PORTS, SUBJECTS, BodyStep, Subject
from tests.fuzz_kernel.campaign import ddmin
from tests.support.live import LiveConntrack
from tests.support.lookups import answered
from tests.support.packets import ip

CHUNK_PACKETS: Final = 10_000
# Mostly different ones, and long enough that none expires while a chunk runs.
SYSCTLS: Final = Sysctls(
    sctp_timeouts_s=(1000, 1000, 1100, 1200, 1300, 1400, 1500, 1600, 1700, 1300),
    gre_timeout_s=1800,
    gre_stream_timeout_s=1900,
)
_FLOWS_AT_ONCE: Final = 32
_STEPS_OF_FLOW: Final = 40
_CHAOS: Final = (0.03, 0.15, 0.4, 0.8)
_STATUS: Final = IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED
_TIMEOUT_SLACK_S: Final = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """The packets of a flow on which the two trackers differ, shrunk."""

    family: int
    steps: tuple[str, ...]
    what: tuple[str, ...]


@dataclass(slots=True)
class OthersTally:
    """The counts of a run.

    Attributes:
        packets: Packets sent.
        flows: Flows started.
        ctstates: Packets by the index of their ctstate in `CTSTATES`.
        causes: Packets by reason; None for those that passed.
        failures: Flows on which the trackers differ.
    """

    packets: int = 0
    flows: int = 0
    ctstates: Counter[int] = field(default_factory=Counter)
    causes: Counter[Reason | None] = field(default_factory=Counter)
    failures: list[Difference] = field(default_factory=list)


@dataclass(slots=True)
class _Flow:
    hosts: tuple[bytes, bytes]
    chaos: float
    steps: list[BodyStep] = field(default_factory=list)


def hosts_of(family: int, serial: int) -> tuple[bytes, bytes]:
    """Two addresses that no other flow of the namespace has."""
    number = serial.to_bytes(2)
    if family == IPV4:
        return b"\x0a\x01" + number, b"\x0a\x02" + number
    prefix = bytes.fromhex("fd00") + bytes(10)
    return prefix + b"\0\1" + number, prefix + b"\0\2" + number


class OthersPair:
    """The two trackers, through which the same packets of one protocol pass."""

    def __init__(self, live: LiveConntrack, subject: Subject, sysctls: Sysctls = SYSCTLS) -> None:
        """Pair the live kernel with our rules."""
        self._live = live
        self._subject = subject
        self._sysctls = sysctls
        self.table = FlowTable(KERNEL_6_1, sysctls)

    def known(self, hosts: tuple[bytes, bytes]) -> FlowSnapshot | None:
        """The SCTP flow between two hosts, in our table."""
        return self.table.lookup([FlowTuple(PROTO_SCTP, *hosts, *SCTP_PORTS)])[0]

    def step(self, hosts: tuple[bytes, bytes], step: BodyStep) -> list[str]:
        """Send one packet; returns the differences."""
        table = self.table
        src, dst = hosts if step.direction == 0 else hosts[::-1]
        octets = ip(src, dst, self._subject.proto, step.body)
        packet = decode(octets)
        right = checksum_ok(packet, octets) if isinstance(packet, Packet) else None
        ours = table.track(packet, time.monotonic(), right)
        seen = self._live.judge(octets)
        differences: list[str] = []
        if seen.ctstate != ours:
            word = "lost" if seen.ctstate is None else CTSTATES[seen.ctstate]
            differences.append(f"ctstate: kernel {word}, ours {CTSTATES[ours]} {table.reason}")
        wanted = tuple_of(packet) if isinstance(packet, Packet) else None
        kernels = answered(self._live.flows.lookup([wanted]))[0] if wanted else None
        mine = table.lookup([wanted])[0] if wanted else None
        _compare(differences, kernels, mine)
        self._compare_reason(differences, seen.texts)
        if ours == CT_INVALID:
            queued = Queued(octets, Hook.PREROUTING, "", "", 0, CHECKSUM_UNVERIFIED)
            finding = diagnose(
                queued, packet, kernels, Evidence.CTNETLINK, KERNEL_6_1, self._sysctls
            )
            if finding.reason is not table.reason:
                differences.append(f"diagnosis: {finding}, is {table.reason}")
        return differences

    def _compare_reason(self, differences: list[str], texts: Sequence[str]) -> None:
        """Compare the kernel's log text, if it logged the packet."""
        reason = self.table.reason
        said = [parse_log(f"{text} ", old_segments_pass=True) for text in texts]
        reasons = {one.reason if one else None for one in said}
        # Without an entry the kernel logs some packets as having a wrong tag.
        agreed = {reason, Reason.BAD_TAG} if reason is Reason.NO_ENTRY else {reason}
        if not reasons <= agreed or (reason is Reason.BAD_TRANSITION and not reasons):
            differences.append(f"reason: kernel {texts}, ours {reason}")


def _compare(
    differences: list[str], kernels: FlowSnapshot | None, ours: FlowSnapshot | None
) -> None:
    if kernels is None or ours is None:
        if kernels is not ours:
            word = "kernel has none" if kernels is None else "kernel has one"
            differences.append(f"entry: {word}")
        return
    if kernels.status & _STATUS != ours.status & _STATUS:
        differences.append(
            f"status: kernel {kernels.status & _STATUS:#x}, ours {ours.status & _STATUS:#x}"
        )
    if kernels.direction != ours.direction:
        differences.append(f"direction: kernel {kernels.direction}, ours {ours.direction}")
    if abs(kernels.timeout_s - ours.timeout_s) > _TIMEOUT_SLACK_S:
        differences.append(f"timeout: kernel {kernels.timeout_s}, ours {ours.timeout_s}")
    theirs, mine = kernels.association, ours.association
    if theirs is None or mine is None:
        if theirs is not mine:
            differences.append(f"association: kernel {theirs}, ours {mine}")
        return
    differences.extend(
        f"{name}: kernel {getattr(theirs, name):#x}, ours {getattr(mine, name):#x}"
        for name in ("state", "tag_original", "tag_reply")
        if getattr(theirs, name) != getattr(mine, name)
    )


def run_others(
    name: str, seed: int, number: int, tally: OthersTally, packets: int = CHUNK_PACKETS
) -> None:
    """Run chunk `number` of `seed` of the protocol `name`, and add it to `tally`."""
    subject = SUBJECTS[name]
    rng = random.Random(f"{name}/{seed}/{number}")  # noqa: S311 - reproducible, no secret
    family = IPV6 if rng.random() < 0.25 else IPV4
    with LiveConntrack(SYSCTLS) as live:
        pair = OthersPair(live, subject)
        serial = 0
        stop_at = tally.packets + packets
        while tally.packets < stop_at:
            flows = [
                _Flow(hosts_of(family, serial + each), rng.choice(_CHAOS))
                for each in range(_FLOWS_AT_ONCE)
            ]
            serial += len(flows)
            tally.flows += len(flows)
            for flow, what in _run_flows(rng, pair, subject, flows, tally):
                tally.failures.append(shrink(pair, family, flow.steps, what, serial))
                serial += 2_000
                if len(tally.failures) > 10:
                    return


def _run_flows(
    rng: random.Random, pair: OthersPair, subject: Subject, flows: list[_Flow], tally: OthersTally
) -> list[tuple[_Flow, list[str]]]:
    """Run flows in parallel, a packet of each in turn; returns those that differ, and how."""
    failed: list[tuple[_Flow, list[str]]] = []
    for _ in range(_STEPS_OF_FLOW):
        for flow in tuple(flows):
            known = pair.known(flow.hosts)
            step = subject.draw(rng, None if known is None else known.association, flow.chaos)
            flow.steps.append(step)
            what = pair.step(flow.hosts, step)
            tally.packets += 1
            tally.ctstates[pair.table.ctstate] += 1
            tally.causes[pair.table.reason] += 1
            if what:
                failed.append((flow, what))
                flows.remove(flow)
    return failed


def shrink(
    pair: OthersPair, family: int, steps: Sequence[BodyStep], what: Sequence[str], serial: int
) -> Difference:
    """Shrink a sequence that differs, by removing packets.

    Args:
        pair: Both trackers.
        family: IP version of the flow.
        steps: A sequence that differed at its end.
        what: The differences found.
        serial: Hosts from this number on are unused.
    """
    numbers = iter(range(serial, serial + 2_000))
    found: tuple[str, ...] = (*what, "does not differ when run alone")
    length = len(steps)

    def differs(candidate: Sequence[BodyStep]) -> bool:
        nonlocal found, length
        number = next(numbers, None)
        if number is None:
            return False
        hosts = hosts_of(family, number)
        for place, step in enumerate(candidate):
            differences = pair.step(hosts, step)
            if differences:
                found = tuple(differences)
                length = place + 1
                return True
        return False

    kept = list(steps)
    if differs(kept):
        kept = ddmin(kept[:length], differs)
        differs(kept)
    return Difference(family, tuple(map(str, kept)), found)
