# SPDX-License-Identifier: MIT
"""Captured frames in, outcomes out."""

import gc
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import LINKS
from nfq_guard.conntrack.kernel_rules import KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import IPS_DST_NAT, CtState, Evidence, Nat
from nfq_guard.policy.decision import Action
from nfq_guard.policy.default import default_policy
from nfq_guard.replay.checksums import ChecksumMode
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.packets import (
    DROPPED_BEFORE,
    FRAGMENT_WAITS,
    NOT_IP,
    SNAPPED,
    UNKNOWN_LINK,
)
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from tests.support.conversation import RAW, Conversation, internet_sum

# First sequence numbers of a trace: plain, across 2**32, across 2**31.
PLACES = [1000, 2**32 - 600, 2**31 - 600]


def replayed(talk: Conversation, settings: ReplaySettings | None = None) -> list[Outcome]:
    """All outcomes, judged by the default policy."""
    chosen = settings or ReplaySettings(every=True)
    replayer = Replayer(chosen, default_policy())
    return [*replayer.replay(talk.frames), *replayer.finish()]


def transfer(isn: int) -> Conversation:
    """200 bytes there, 100,000 back, all acknowledged."""
    talk = Conversation(client_isn=isn, server_isn=isn)
    talk.open()
    talk.client("PA", 1, 1, length=200)
    for start in range(1, 100_001, 1000):
        talk.server("A", start, 201, length=1000)
        talk.client("A", 201, start + 1000)
    return talk


@pytest.mark.parametrize("isn", PLACES)
@pytest.mark.parametrize("kernel", [KERNEL_5_10, KERNEL_5_15, KERNEL_6_1])
def test_healthy_flow(isn: int, kernel: KernelRules) -> None:
    outcomes = replayed(transfer(isn), ReplaySettings(kernel=kernel, every=True))
    assert [outcome.ctstate for outcome in outcomes[:3]] == [
        CtState.NEW,
        CtState.ESTABLISHED,
        CtState.ESTABLISHED,
    ]
    assert {outcome.ctstate for outcome in outcomes[3:]} == {CtState.ESTABLISHED}


@pytest.mark.parametrize("isn", PLACES)
@pytest.mark.parametrize(
    ("kernel", "reason"), [(KERNEL_5_15, Reason.SEQ_UNDER), (KERNEL_6_1, None)]
)
def test_late_retransmission(isn: int, kernel: KernelRules, reason: Reason | None) -> None:
    """The classic packet: INVALID up to 5.15, ignored from 6.1."""
    talk = transfer(isn)
    talk.server("A", 1, 201, length=1000)
    last = replayed(talk, ReplaySettings(kernel=kernel, every=True))[-1]
    assert last.ignored is (Ignored.SEQ_UNDER if reason is None else None)
    assert (last.finding.reason if last.finding else None) == reason


@pytest.mark.parametrize("captured", [96, 1 << 20])
@pytest.mark.parametrize("length", [3_000, 70_000])
@pytest.mark.parametrize("family", [4, 6])
def test_super_packets_without_a_length(family: int, length: int, captured: int) -> None:
    """The frame states how long they are, however much of them is captured."""
    talk = Conversation(family=family)
    talk.open()
    for start in (1, 1 + length):
        talk.client("A", 1, start, win=1000)
        talk.server("A", start, 1)
        frame = talk.frames[-1]
        octets = bytearray(frame.octets)
        at = 2 if family == 4 else 4
        octets[at : at + 2] = bytes(2)
        if family == 4:
            octets[10:12] = bytes(2)
            octets[10:12] = internet_sum(bytes(octets[:20])).to_bytes(2, "big")
        frame.wire_len = len(octets) + length
        frame.octets = (bytes(octets) + bytes(length))[:captured]
    talk.client("A", 1, 1 + 2 * length, win=1000)
    talk.server("PA", 1 + 2 * length, 1, length=10)
    outcomes = replayed(talk)
    assert {outcome.ctstate for outcome in outcomes[3:]} == {CtState.ESTABLISHED}
    assert [outcome.ignored for outcome in outcomes] == [None] * len(outcomes)


@pytest.mark.parametrize("isn", PLACES)
def test_breach_has_its_numbers(isn: int) -> None:
    talk = transfer(isn)
    talk.client("A", 201, 100_001 + 17)
    (last,) = replayed(talk, ReplaySettings())
    assert last.frame.number == len(talk.frames)
    assert last.finding is not None
    assert last.finding.breach is not None
    assert last.finding.breach.bound is Reason.ACK_OVER
    assert last.finding.breach.distance == 17
    assert last.snapshot is not None
    assert last.snapshot.evidence is Evidence.REPLAY
    assert last.decision is not None
    assert last.decision.action is Action.ALLOW


def test_assumed_nat_reaches_the_policy() -> None:
    talk = transfer(1000)
    talk.client("A", 201, 200_001)
    (last,) = replayed(talk, ReplaySettings(nat_status=IPS_DST_NAT))
    assert last.snapshot is not None
    assert last.snapshot.nat is Nat.DNAT
    assert last.decision is not None
    assert last.decision.action is Action.DROP


def test_without_a_policy_nothing_is_decided() -> None:
    talk = Conversation()
    talk.server("SA", 0, 1)
    replayer = Replayer(ReplaySettings())
    assert replayer.replay(talk.frames) == []
    (outcome,) = replayer.finish()
    assert outcome.decision is None


def test_frames_without_a_packet() -> None:
    """Each has its own reason, and no ctstate."""
    talk = Conversation()
    talk.add(bytes(Ether() / ARP()), 1)
    talk.add(b"\0" * 60, 147)
    for piece in fragment(IP() / UDP() / Raw(b"x" * 3000), 1400)[:2]:
        talk.add(bytes(piece))
    talk.add(bytes(IP() / TCP())[:30])
    replayer = Replayer(ReplaySettings(every=True))
    outcomes = [*replayer.replay(talk.frames), *replayer.finish()]
    assert {outcome.ctstate for outcome in outcomes} == {None}
    assert [outcome.absent for outcome in outcomes] == [
        NOT_IP,
        UNKNOWN_LINK,
        FRAGMENT_WAITS,
        FRAGMENT_WAITS,
        SNAPPED,
    ]
    assert replayer.packets == 0
    assert replayer.reader.unknown_links == {147: 2}


def test_datagram_is_judged_with_its_last_fragment() -> None:
    talk = Conversation()
    pieces = fragment(IP() / UDP(sport=5, dport=53) / Raw(b"x" * 3000), 1400)
    for piece in pieces:
        talk.add(bytes(piece))
    outcomes = replayed(talk)
    assert [outcome.ctstate for outcome in outcomes] == [None, None, CtState.NEW]


def test_icmp_error_belongs_to_its_flow() -> None:
    talk = Conversation()
    talk.open()
    quoted = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80)
    talk.add(bytes(IP(src="10.9.9.9", dst="10.0.0.1") / ICMP(type=3, code=4) / quoted))
    assert replayed(talk)[-1].ctstate is CtState.RELATED


def test_broken_checksum() -> None:
    talk = transfer(1000)
    good = talk.frames[-1].octets
    talk.add(good[:36] + b"\x12\x34" + good[38:])
    settings = ReplaySettings(checksums=ChecksumMode.AUTO)
    (broken,) = replayed(talk, settings)
    assert broken.finding is not None
    assert broken.finding.reason is Reason.BAD_CHECKSUM
    assert replayed(talk, ReplaySettings(checksums=ChecksumMode.IGNORE)) == []


def test_snapped_capture() -> None:
    """Lengths come from the IP header: 60 bytes of each frame are enough."""
    talk = transfer(1000)
    whole = replayed(talk)
    for frame in talk.frames:
        frame.octets = frame.octets[:60]
    assert [outcome.ctstate for outcome in replayed(talk)] == [outcome.ctstate for outcome in whole]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kept", [1, 19, 20, 39])
def test_snapped_ip_header(family: int, kept: int) -> None:
    """As of the packet inside VXLAN at a snapshot length of 96: the header itself is not broken."""
    talk = Conversation(family=family)
    talk.open()
    for frame in talk.frames:
        frame.octets = frame.octets[:kept]
    assert [one.absent for one in replayed(talk)] == [SNAPPED] * len(talk.frames)


@pytest.mark.parametrize("family", [4, 6])
def test_packet_that_is_shorter_than_its_ip_header(family: int) -> None:
    talk = Conversation(family=family)
    talk.open()
    for frame in talk.frames:
        frame.octets = frame.octets[:19]
        frame.wire_len = 19
    assert [one.absent for one in replayed(talk)] == [DROPPED_BEFORE] * len(talk.frames)


def test_snapped_quote() -> None:
    """An ICMP error whose quote the file does not hold is not called unrelated."""
    talk = transfer(1000)
    quoted = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80)
    talk.add(bytes(IP(src="10.9.9.9", dst="10.0.0.1") / ICMP(type=3, code=4) / quoted)[:50])
    assert replayed(talk)[-1].absent == SNAPPED


@pytest.mark.parametrize(("expires", "ctstate"), [(True, CtState.INVALID), (False, None)])
def test_time_passes_as_captured(expires: bool, ctstate: CtState | None) -> None:
    """A FIN long after the flow closed finds no entry, unless entries never expire."""
    talk = Conversation()
    talk.open()
    talk.client("FA", 1, 1)
    talk.server("FA", 1, 2)
    talk.client("A", 2, 2)
    talk.server("FA", 1, 2, wait=130.0)
    outcomes = replayed(talk, ReplaySettings(sysctls=Sysctls(expires=expires)))
    assert (outcomes[0].ctstate if outcomes else None) == ctstate


def test_replaying_twice_gives_the_same() -> None:
    talk = transfer(7)
    talk.client("A", 201, 300_000)
    talk.client("R", 100)
    first, second = (
        [(outcome.frame.number, outcome.ctstate, outcome.state) for outcome in replayed(talk)]
        for _ in range(2)
    )
    assert first == second


def flood(count: int) -> Iterator[list[Frame]]:
    """SYNs from ever new ports and addresses, in batches."""
    syn = bytearray(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, flags="S")))
    for begin in range(0, count, 1000):
        batch: list[Frame] = []
        for number in range(begin, begin + 1000):
            syn[12:16] = (number >> 14).to_bytes(4, "big")
            syn[20:22] = (number & 0x3FFF).to_bytes(2, "big")
            octets = bytes(syn)
            batch.append(Frame(number + 1, number * 1000, RAW, len(octets), octets, 0))
        yield batch


@pytest.mark.compiled
@pytest.mark.no_cover  # many packets, all alike
def test_memory_stays_flat() -> None:
    """A scan through far more flows than the table holds."""
    replayer = Replayer(ReplaySettings(capacity=2000, checksums=ChecksumMode.IGNORE))
    # What it keeps is objects; tracing their bytes would take twenty times as long.
    gc.collect()  # what other tests left
    before = sys.getallocatedblocks()
    kept: list[int] = []
    for index, batch in enumerate(flood(40_000)):
        replayer.replay(batch)
        if index % 10 == 9:
            gc.collect()
            kept.append(sys.getallocatedblocks() - before)
    assert len(replayer.table) <= 2000
    assert replayer.table.created == 40_000
    assert kept[0] > 2000
    assert max(kept[1:]) < 1.2 * kept[0]


@pytest.mark.compiled
@given(
    frames=st.lists(
        st.tuples(st.sampled_from(sorted(LINKS)), st.binary(max_size=120), st.integers(0, 2**63)),
        max_size=30,
    )
)
def test_any_octets(frames: list[tuple[int, bytes, int]]) -> None:
    """Every frame has an outcome."""
    taken = [
        Frame(number, time_ns, linktype, len(octets), octets, 0)
        for number, (linktype, octets, time_ns) in enumerate(frames, start=1)
    ]
    replayer = Replayer(ReplaySettings(every=True), default_policy())
    outcomes = [*replayer.replay(taken), *replayer.finish()]
    assert len(outcomes) == len(taken)
    assert all((outcome.ctstate is None) == (outcome.absent != "") for outcome in outcomes)


@pytest.mark.compiled
@given(
    kernel=st.sampled_from([KERNEL_5_10, KERNEL_5_15, KERNEL_6_1]),
    changes=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 50), st.integers(0, 255)), max_size=20
    ),
)
def test_changed_octets(kernel: KernelRules, changes: list[tuple[int, int, int]]) -> None:
    """Every INVALID packet has a reason, and every breach a distance."""
    talk = Conversation()
    talk.open()
    for start in range(1, 5001, 1000):
        talk.server("A", start, 1, length=100)
        talk.client("A", 1, start + 100)
    for index, position, value in changes:
        frame = talk.frames[index]
        octets = bytearray(frame.octets)
        octets[position % len(octets)] = value
        frame.octets = bytes(octets)
    settings = ReplaySettings(kernel=kernel, every=True, checksums=ChecksumMode.IGNORE)
    for outcome in replayed(talk, settings):
        assert (outcome.ctstate is CtState.INVALID) == (outcome.finding is not None)
        if outcome.finding is not None:
            assert outcome.finding.reason is not Reason.RACED
            if outcome.finding.breach is not None:
                assert outcome.finding.breach.distance >= 1
