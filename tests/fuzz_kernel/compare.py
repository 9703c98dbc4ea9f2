# SPDX-License-Identifier: MIT
"""Compares our conntrack with the kernel's over the same packets."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nfq_guard.conntrack import window
from nfq_guard.conntrack.kernel_rules import KernelRules, guess_rules
from nfq_guard.conntrack.states import CLASS_RST
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CT_INVALID, CTSTATES, FlowTable
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import BOUNDS, Breach, Ignored, Reason
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_CONFIRMED,
    IPS_SEEN_REPLY,
    IPV4,
    IPV6,
    PROTO_TCP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    Peer,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_UNVERIFIED, Packet, Queued, Segment
from tests.support.kernel_log import prints_bounds
from tests.support.live import Conntrack, LiveConntrack
from tests.support.trace import Ends, Step

# The kernel's log text for each reason and ignored case; the first group is the number that it
# prints. Equal values of the two enums are the same bound, and have the same text.
_TEXTS: Final[dict[str, re.Pattern[str]]] = {
    Reason.SEQ_OVER: re.compile(r"SEQ is over upper bound (\d+)"),
    Reason.ACK_OVER: re.compile(r"ACK is over upper bound (\d+)"),
    Reason.RST_OUTSIDE: re.compile("invalid rst"),
    Reason.BAD_TRANSITION: re.compile(r"packet \(index \d\) in dir \d invalid, state"),
    Reason.NO_ENTRY: re.compile("invalid new"),
    Reason.BAD_FLAGS: re.compile("invalid tcp flag combination"),
    Ignored.SEQ_UNDER: re.compile(r"SEQ is under lower bound (\d+)"),
    Ignored.ACK_UNDER: re.compile(r"ignored ACK under lower bound (\d+)"),
    Ignored.OVERSHOOT: re.compile(r"(\d+) bytes more than expected"),
    Ignored.STATE: re.compile(r"packet \(index \d\) in dir \d ignored, state"),
    Ignored.CHALLENGE_ACK: re.compile("challenge-ack ignored"),
}
# The texts of kernels before 6.1, which print no number with a bound.
_OLD_TEXTS: Final[dict[str, re.Pattern[str]]] = {
    **_TEXTS,
    Reason.SEQ_OVER: re.compile("SEQ is over the upper bound|bytes more than expected"),
    Reason.ACK_OVER: re.compile("ACK is over the upper bound"),
    Reason.SEQ_UNDER: re.compile("SEQ is under the lower bound"),
    Reason.ACK_UNDER: re.compile("ACK is under the lower bound"),
    Reason.BAD_TRANSITION: re.compile(f"invalid state|{_TEXTS[Reason.BAD_TRANSITION].pattern}"),
    Ignored.STATE: re.compile(f"invalid packet ignored in state|{_TEXTS[Ignored.STATE].pattern}"),
}
# The kernel prints the first number that fails; our limit is the last that passes.
_PRINTED_PAST_LIMIT: Final[dict[str, int]] = {
    Reason.SEQ_OVER: 1,
    Reason.ACK_OVER: 1,
    Reason.SEQ_UNDER: -1,
    Reason.ACK_UNDER: -1,
}
_BESIDE_THE_POINT: Final = re.compile("lower(ed)? timeout to")
_STATUS: Final = IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED
# Both timeouts are truncated to whole seconds, and the two clocks may be a tick of 10 ms apart.
_CUT_S: Final = 1.02
_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one step.

    Attributes:
        snapshot: The flow after it, in our table.
        ctstate: Our ctstate of it, an index in `CTSTATES`.
        cause: Why it is INVALID or ignored; None for a segment that is neither.
        differences: Where the kernel's result differs.
    """

    snapshot: FlowSnapshot | None
    ctstate: int
    cause: Reason | Ignored | None
    differences: list[str]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A step on which the two trackers differ.

    Attributes:
        step: Its index in the trace, from 0.
        what: Each difference, `name: kernel ..., ours ...`.
    """

    step: int
    what: tuple[str, ...]


def ends_of(family: int, serial: int) -> Ends:
    """Addresses and ports that no other flow of the namespace has."""
    ports = (1024 + serial % 60000, 1024 + serial // 60000)
    if family == IPV4:
        return Ends(IPV4, (b"\x0a\x01\0\1", b"\x0a\x02\0\1"), ports)
    prefix = bytes.fromhex("fd00") + bytes(11)
    return Ends(IPV6, (prefix + b"\1\0\1", prefix + b"\2\0\1"), ports)


@dataclass(frozen=True, slots=True)
class _Ours:
    """Our result for one step: as in `Outcome`, and the bound that it broke."""

    ctstate: int
    cause: Reason | Ignored | None
    breach: Breach | None


def broken_bound(table: FlowTable, packet: Packet, snapshot: FlowSnapshot | None) -> Breach | None:
    """The bound for which `packet`, the last one of `table`, is INVALID or ignored.

    Args:
        table: The table that tracked `packet` last.
        packet: A segment.
        snapshot: Its flow, as its direction sees it. An INVALID or ignored segment does not move
            the window, an overshoot aside, so the flow before it and after it are alike.
    """
    cause = table.reason or table.ignored
    if snapshot is None or snapshot.peers is None or cause not in BOUNDS:
        return None
    bound = Reason(cause)
    segment = packet.l4
    assert isinstance(segment, Segment)
    sender = snapshot.peers[snapshot.direction]
    receiver = snapshot.peers[1 - snapshot.direction]
    if bound is Reason.RST_OUTSIDE:
        return window.rst_against(segment.seq, receiver)
    seq, end = segment.seq, segment.end
    if window.stands_at_td_end(segment, snapshot.state):
        seq = end = sender.td_end
    sack = window.acknowledged(segment, receiver)
    return window.against(bound, seq, end, sack, sender, receiver)


class Pair:
    """The two trackers, through which the same flows run."""

    def __init__(self, live: Conntrack, kernel: KernelRules, sysctls: Sysctls) -> None:
        """Pair the live kernel with our rules for it."""
        self._live = live
        self._log = guess_rules(live.release).log
        self._prints_bounds = prints_bounds(live.release)
        self._silent_new = not sysctls.loose
        self._texts_of = _TEXTS if kernel.old_segments_pass else _OLD_TEXTS
        self._sysctls = sysctls
        self._kernel = kernel
        # How much later than ours the kernel's timeout of a flow may have been started, at most.
        self._late_s: dict[Ends, float] = {}
        self.table = FlowTable(kernel, sysctls)

    def step_all(self, steps: Sequence[tuple[Ends, Step]]) -> list[Outcome]:
        """Send one segment of each of several flows."""
        table = self.table
        packets = [ends.octets(step) for ends, step in steps]
        flows = [FlowTuple(PROTO_TCP, *ends.addresses, *ends.ports) for ends, _ in steps]
        played = self._live.play(packets, flows)
        found: list[list[str]] = []
        ours: list[_Ours] = []
        for (ends, _), octets, answer in zip(steps, packets, played.answers, strict=True):
            packet = decode(octets)
            ctstate = table.track(packet, answer.before_s, None)
            late_s = answer.after_s - answer.before_s
            self._late_s[ends] = max(self._late_s.get(ends, 0), late_s)
            differences: list[str] = []
            if answer.ctstate != ctstate:
                word = "lost" if answer.ctstate is None else CTSTATES[answer.ctstate]
                differences.append(f"ctstate: kernel {word}, ours {CTSTATES[ctstate]}")
            found.append(differences)
            assert isinstance(packet, Packet)
            breach = broken_bound(table, packet, table.snapshot())
            ours.append(_Ours(ctstate, table.reason or table.ignored, breach))
        texts = _by_ports(played.texts)
        ours_after = table.lookup(flows)
        # Our timeouts count from the last segment on.
        elapsed_s = played.read_s - played.answers[-1].before_s
        for index, (ends, step) in enumerate(steps):
            differences, snapshot = found[index], played.entries[index]
            self._compare_reason(differences, ours[index], texts.get(ends.ports, []), step)
            _compare_flow(differences, snapshot, ours_after[index])
            differences += _compare_timeout(
                snapshot, ours_after[index], self._late_s[ends], elapsed_s
            )
            if ours[index].ctstate == CT_INVALID and self._live.evidence is Evidence.BPF:
                if snapshot:
                    # It was looked up by the tuple of the original direction.
                    snapshot.direction ^= step.direction
                self._compare_diagnosis(differences, ours[index], packets[index], snapshot)
        return [
            Outcome(ours_after[index], ours[index].ctstate, ours[index].cause, found[index])
            for index in range(len(steps))
        ]

    def _compare_reason(
        self,
        differences: list[str],
        answer: _Ours,
        texts: list[str],
        step: Step,
    ) -> None:
        cause = answer.cause
        if cause is Reason.NO_ENTRY and (
            Reason.NO_ENTRY in self._log.silent or (self._silent_new and step.flags & 0x17 == 0x10)
        ):
            if texts:
                differences.append(f"reason: kernel {texts}, ours is silent")
            return
        if cause is None:
            if texts:
                differences.append(f"reason: kernel {texts}, ours none")
            return
        pattern = self._texts_of[cause]
        match = pattern.search(texts[0]) if len(texts) == 1 else None
        if match is None:
            differences.append(f"reason: kernel {texts}, ours {pattern.pattern!r}")
        elif self._prints_bounds and cause in _PRINTED_PAST_LIMIT:
            assert answer.breach is not None
            printed = (answer.breach.limit + _PRINTED_PAST_LIMIT[cause]) & _MASK
            if int(match[1]) != printed:
                differences.append(f"bound: kernel {match[1]}, ours {printed}")

    def _compare_diagnosis(
        self,
        differences: list[str],
        answer: _Ours,
        octets: bytes,
        snapshot: FlowSnapshot | None,
    ) -> None:
        """Compare the diagnosis of the daemon, which sees only the kernel's entry afterwards."""
        queued = Queued(octets, Hook.PREROUTING, "", "", 0, CHECKSUM_UNVERIFIED)
        finding = diagnose(
            queued, decode(octets), snapshot, Evidence.BPF, self._kernel, self._sysctls
        )
        if finding.reason is Reason.RST_OUTSIDE and self._rst_passed_unseen(snapshot):
            return
        if finding.reason is not answer.cause:
            differences.append(f"diagnosis: {finding.reason}, is {answer.cause}")
        elif finding.breach and finding.breach != answer.breach:
            differences.append(f"breach: {finding.breach}, is {answer.breach}")

    def _rst_passed_unseen(self, snapshot: FlowSnapshot | None) -> bool:
        """Whether an RST may have skipped the check against `td_maxack`, for a cause now unseen.

        The last segment was a SYN then; by the time of the lookup this RST has taken its place in
        the entry.
        """
        return snapshot is not None and snapshot.last_index == CLASS_RST


def _by_ports(texts: Sequence[tuple[str, bytes]]) -> dict[tuple[int, int], list[str]]:
    """The log texts of each flow, by the ports of its original direction."""
    found: dict[tuple[int, int], list[str]] = {}
    for text, octets in texts:
        if _BESIDE_THE_POINT.search(text):
            continue
        packet = decode(octets)
        assert isinstance(packet, Packet)
        assert isinstance(packet.l4, Segment)
        ports = packet.l4.sport, packet.l4.dport
        # The third octet from the end tells the two addresses of `ends_of` apart.
        there = packet.src[-3] == 1
        found.setdefault(ports if there else ports[::-1], []).append(text)
    return found


def _compare_flow(
    differences: list[str],
    kernels: FlowSnapshot | None,
    ours: FlowSnapshot | None,
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
    if kernels.evidence is not Evidence.BPF:
        for name in ("direction", "state"):
            _compare_attribute(differences, name, kernels, ours)
        return
    for name in (
        "direction", "state", "last_dir", "last_index", "last_seq", "last_ack", "last_end",
        "last_win", "last_wscale", "last_flags", "retrans",
    ):  # fmt: skip
        _compare_attribute(differences, name, kernels, ours)
    assert kernels.peers is not None
    assert ours.peers is not None
    for side in (0, 1):
        theirs_peer, my_peer = kernels.peers[side], ours.peers[side]
        if theirs_peer != my_peer:
            differences.extend(_compare_peer(("original", "reply")[side], theirs_peer, my_peer))


def _compare_timeout(
    kernels: FlowSnapshot | None, ours: FlowSnapshot | None, late_s: float, elapsed_s: float
) -> list[str]:
    """The difference of the timeouts, unless the measured times explain it.

    Args:
        kernels: The entry as the kernel has it.
        ours: The entry as we have it.
        late_s: How much later than ours the kernel's timeout may have started.
        elapsed_s: How much later than ours the kernel's timeout may have been read.
    """
    if kernels is None or ours is None:
        return []
    more_s = kernels.timeout_s - ours.timeout_s
    if -(elapsed_s + _CUT_S) < more_s < late_s + _CUT_S:
        return []
    measured = f"started up to {late_s:.3f} s later, read up to {elapsed_s:.3f} s later"
    return [f"timeout: kernel {kernels.timeout_s}, ours {ours.timeout_s}, {measured}"]


def _compare_attribute(
    differences: list[str], name: str, kernels: FlowSnapshot, ours: FlowSnapshot
) -> None:
    theirs, mine = getattr(kernels, name), getattr(ours, name)
    if theirs != mine:
        differences.append(f"{name}: kernel {theirs}, ours {mine}")


def _compare_peer(side: str, kernels: Peer, ours: Peer) -> list[str]:
    return [
        f"{side} {name}: kernel {getattr(kernels, name)}, ours {getattr(ours, name)}"
        for name in ("td_end", "td_maxend", "td_maxwin", "td_maxack", "td_scale", "flags")
        if getattr(kernels, name) != getattr(ours, name)
    ]


def run_trace(
    steps: Sequence[Step], family: int, kernel: KernelRules, sysctls: Sysctls
) -> Mismatch | None:
    """Run one flow alone in a new namespace; returns the first step that differs."""
    with LiveConntrack(sysctls) as live:
        return first_mismatch(Pair(live, kernel, sysctls), ends_of(family, 0), steps)


def first_mismatch(pair: Pair, ends: Ends, steps: Sequence[Step]) -> Mismatch | None:
    """Run one flow; returns the first step that differs."""
    for index, step in enumerate(steps):
        time.sleep(step.wait_s)
        (outcome,) = pair.step_all([(ends, step)])
        if outcome.differences:
            return Mismatch(index, tuple(outcome.differences))
    return None
