# SPDX-License-Identifier: MIT
"""Unfinished checksums are distinguished from broken ones."""

from pathlib import Path
from typing import Any

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layer
from scapy.packet import Raw

from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.replay.checksums import ChecksumJudge, ChecksumMode, Suspect
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.wire.checksum import checksum_unfinished
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet
from tests.support.conversation import Conversation

GOOD = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / b"hello")


def with_checksum(field: int, octets: bytes = GOOD) -> bytes:
    return octets[:36] + field.to_bytes(2, "big") + octets[38:]


def pseudo_sum() -> int:
    words = [0x0A00, 0x0001, 0x0A00, 0x0002, 6, len(GOOD) - 20]
    return sum(words)


UNFINISHED = with_checksum(pseudo_sum())
BROKEN = with_checksum(0xBEEF)


def judge(mode: ChecksumMode, *packets: bytes) -> list[bool | None]:
    """The final judgment of each checksum, without any acknowledgement."""
    checksums = ChecksumJudge(mode)
    answers: list[bool | None] = []
    suspects: list[Suspect | None] = []
    for octets in packets:
        packet: Any = decode(octets)
        assert isinstance(packet, Packet)
        answers.append(checksums.ok(packet, octets))
        suspects.append(checksums.suspect)
    for place, suspect in enumerate(suspects):
        if suspect is not None and checksums.is_broken(suspect):
            answers[place] = False
    return answers


def test_unfinished_is_what_linux_leaves() -> None:
    packet = decode(UNFINISHED)
    assert isinstance(packet, Packet)
    assert checksum_unfinished(packet)


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        (ChecksumMode.AUTO, [True, True, None, False, True]),
        (ChecksumMode.VERIFY, [True, True, False, False, True]),
        (ChecksumMode.IGNORE, [None, None, None, None, None]),
    ],
)
def test_modes(mode: ChecksumMode, answers: list[bool | None]) -> None:
    assert judge(mode, GOOD, GOOD, UNFINISHED, BROKEN, GOOD) == answers


@pytest.mark.parametrize("right", [0, 2])
def test_source_with_mostly_wrong_sums_is_the_capturing_host(right: int) -> None:
    assert judge(ChecksumMode.AUTO, *[GOOD] * right, BROKEN) == [*[True] * right, None]


def test_snapped_cannot_be_told() -> None:
    assert judge(ChecksumMode.VERIFY, GOOD[:-2]) == [None]


def forms() -> list[bytes]:
    """Wrong sums as left by offload: without the length, 0, in a long packet, with length 0."""
    words = sum([0x0A00, 0x0001, 0x0A00, 0x0002, 6])
    long = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / bytes(3000))
    without_length = bytearray(with_checksum(0xBEEF, long[:1000]))
    without_length[2:4] = b"\0\0"
    return [
        with_checksum(words),
        with_checksum(0),
        with_checksum(0xBEEF, long),
        bytes(without_length),
    ]


@pytest.mark.parametrize("form", range(4))
def test_forms_of_offload(form: int) -> None:
    """They are unfinished, whatever else the source sends."""
    assert judge(ChecksumMode.AUTO, *[GOOD] * 9, forms()[form]) == [*[True] * 9, None]


def test_long_packets_with_right_sums() -> None:
    """A source that finishes them does not offload: a jumbo frame can be broken too."""
    long = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / bytes(3000))
    packets = [*[long] * 9, with_checksum(0xBEEF, long)]
    assert judge(ChecksumMode.AUTO, *packets) == [*[True] * 9, False]


def harmed(talk: Conversation) -> None:
    """Break the checksum of the last frame."""
    frame = talk.frames[-1]
    octets = bytearray(frame.octets)
    octets[36] ^= 0x5A
    frame.octets = bytes(octets)


def download(sport: int = 40000) -> Conversation:
    talk = Conversation(sport=sport)
    talk.open()
    for start in range(1, 5001, 1000):
        talk.server("A", start, 1, length=1000)
        talk.client("A", 1, start + 1000)
    return talk


def reasons(talk: Conversation) -> tuple[list[Reason], ChecksumJudge]:
    replayer = Replayer(ReplaySettings())
    outcomes = [*replayer.replay(talk.frames), *replayer.finish()]
    return [
        outcome.finding.reason for outcome in outcomes if outcome.finding
    ], replayer.reader.checksums


def test_acknowledged_segment_was_whole() -> None:
    """Its sum is an artefact of the capture, and it makes nothing else INVALID."""
    talk = download()
    talk.server("A", 5001, 1, length=1000)
    harmed(talk)
    talk.client("A", 1, 6001)
    found, checksums = reasons(talk)
    assert found == []
    assert (checksums.forgiven, checksums.broken, checksums.unknown) == (1, 0, 0)


def test_repeated_segment_was_broken() -> None:
    """The receiver discarded it, and the sender retransmitted it."""
    talk = download()
    talk.server("A", 5001, 1, length=1000)
    harmed(talk)
    talk.server("A", 5001, 1, length=1000)
    talk.client("A", 1, 6001)
    found, checksums = reasons(talk)
    assert found == [Reason.BAD_CHECKSUM]
    assert (checksums.forgiven, checksums.broken, checksums.unknown) == (0, 1, 0)


def unfinished(talk: Conversation) -> None:
    """Leave the checksum of the last frame to the NIC."""
    frame = talk.frames[-1]
    octets = frame.octets
    words = sum(int.from_bytes(octets[at : at + 2], "big") for at in range(12, 20, 2))
    field = (words + 6 + len(octets) - 20) % 0xFFFF
    frame.octets = octets[:36] + field.to_bytes(2, "big") + octets[38:]


def syns(count: int = 3) -> Conversation:
    """SYNs whose checksums are unfinished in the whole file."""
    talk = Conversation()
    for _ in range(count):
        talk.client("S", 0, win=65000, wait=1.0)
        unfinished(talk)
    return talk


def counts(talk: Conversation) -> tuple[int, int, int, int]:
    found, checksums = reasons(talk)
    assert found == []
    return checksums.forgiven, checksums.broken, checksums.unknown, checksums.unanswered


def test_unanswered_syns_may_be_at_the_sender_or_broken_at_the_receiver() -> None:
    assert counts(syns()) == (0, 0, 3, 3)


def test_answered_syn_was_whole() -> None:
    """Any answer proves it, also an RST, or its sender continues, if alone in the file."""
    talk = syns()
    talk.server("SA", 0, 1, win=65000)
    assert counts(talk) == (3, 0, 0, 0)
    talk = syns()
    talk.server("RA", 0, 1)
    assert counts(talk) == (3, 0, 0, 0)
    talk = syns(1)
    talk.client("A", 1, 1)
    _, checksums = reasons(talk)
    assert (checksums.forgiven, checksums.unknown) == (1, 0)


def test_unanswered_syn_of_a_host_that_offloads() -> None:
    talk = syns()
    other = Conversation(sport=40001)
    other.client("PA", 1, 1, length=100)
    unfinished(other)
    talk.frames += other.frames
    assert counts(talk) == (4, 0, 0, 0)


def test_unanswered_syns_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = syns().save(tmp_path / "syns.pcap")
    assert main(["replay", capture]) == 0
    out = capsys.readouterr().out
    assert "3 unknown, treated as correct; --checksum verify" in out
    assert "3 SYNs without an answer and with an unfinished checksum" in out
    assert main(["explain", capture, "1"]) == 0
    assert "checksum unfinished, as a sender leaves it to its NIC" in capsys.readouterr().out
    assert main(["explain", capture, "1", "--checksum", "verify"]) == 0
    out = capsys.readouterr().out
    assert "INVALID bad-checksum" in out
    assert "checksum unfinished" not in out


def test_broken_rst_ends_no_flow() -> None:
    talk = download()
    talk.server("R", 5001)
    harmed(talk)
    talk.server("A", 5001, 1, length=1000)
    talk.client("A", 1, 6001)
    found, _ = reasons(talk)
    assert found == [Reason.BAD_CHECKSUM]


def test_garbage_from_the_capturing_host() -> None:
    """All sums of one direction are wrong, in no known form: nothing is called broken."""
    talk = Conversation()
    talk.client("S", 0, win=65000)
    harmed(talk)
    talk.server("SA", 0, 1, win=65000)
    for start in range(1, 100_001, 1000):
        talk.client("A", start, 1, length=1000)
        harmed(talk)
        if start % 3000 == 1:
            talk.server("A", 1, start + 1000, win=65000)
    found, checksums = reasons(talk)
    assert found == []
    assert checksums.broken == 0
    assert checksums.forgiven + checksums.unknown == 101


def test_broken_datagram_at_the_receiver() -> None:
    datagram = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=53) / b"hello")
    broken = datagram[:26] + b"\xbe\xef" + datagram[28:]
    talk = Conversation()
    for octets in (datagram, datagram, broken, datagram):
        talk.add(octets)
    found, _ = reasons(talk)
    assert found == [Reason.BAD_CHECKSUM]


def tunnelled(tunnel: Layer, inside: bytes) -> bytes:
    """A datagram whose checksum is right once that of the segment inside is finished."""
    whole = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / tunnel / Ether() / IP(GOOD))
    assert whole.endswith(GOOD)
    return whole[: -len(GOOD)] + inside


@pytest.mark.parametrize(
    "tunnel",
    [UDP(dport=4789) / VXLAN(vni=7), UDP(dport=6081) / GENEVE(vni=7, proto=0x6558)],
    ids=["vxlan", "geneve"],
)
def test_outer_checksum_that_the_inner_one_will_complete(tunnel: Layer) -> None:
    """Linux leaves it so in a tunnel's datagrams, also on a host that finishes others."""
    plain = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=53) / b"hello")
    answers = judge(
        ChecksumMode.AUTO,
        *[plain] * 12,
        tunnelled(tunnel, GOOD),
        tunnelled(tunnel, UNFINISHED),
        tunnelled(tunnel, BROKEN),
        tunnelled(tunnel, bytes(len(GOOD))),
        tunnelled(tunnel, with_checksum(pseudo_sum())[:-1] + b"?"),
    )
    assert answers == [*[True] * 13, None, False, False, None]


def with_header_sum(octets: bytes, field: bytes) -> bytes:
    return octets[:10] + field + octets[12:]


def test_broken_ip_header_reaches_no_rule() -> None:
    """The IP layer discards it; it is not INVALID."""
    talk = download()
    talk.server("A", 5001, 1, length=1000)
    talk.frames[-1].octets = with_header_sum(talk.frames[-1].octets, b"\x12\x34")
    talk.add(b"\x44" + talk.frames[-2].octets[1:])
    replayer = Replayer(ReplaySettings())
    assert [*replayer.replay(talk.frames), *replayer.finish()] == []
    assert replayer.reader.without_packet == {"an IP header that the kernel throws away": 2}


def test_broken_ip_header_that_fits_no_flow() -> None:
    talk = download()
    talk.server("FA", 1, 1)
    broken = bytearray(with_header_sum(talk.frames[-1].octets, b"\x12\x34"))
    broken[15] = 77
    talk.frames[-1].octets = bytes(broken)
    replayer = Replayer(ReplaySettings())
    assert [*replayer.replay(talk.frames), *replayer.finish()] == []
    assert replayer.reader.without_packet == {"an IP header that the kernel throws away": 1}


@pytest.mark.parametrize("place", range(7))
def test_header_sum_of_a_segment_that_arrived(place: int) -> None:
    """A tool made it: the receiver acknowledged data that it would have discarded."""
    talk = Conversation()
    talk.open()
    for start in (1, 1001):
        talk.server("A", start, 1, length=1000)
        talk.client("A", 1, start + 1000)
    frame = talk.frames[place]
    frame.octets = with_header_sum(frame.octets, b"\x12\x34")
    replayer = Replayer(ReplaySettings())
    frames = download(50_000).frames + talk.frames
    assert [*replayer.replay(frames), *replayer.finish()] == []
    carries = place in {0, 1, 3, 5}
    thrown = {} if carries else {"an IP header that the kernel throws away": 1}
    assert replayer.reader.without_packet == thrown
    assert replayer.reader.checksums.forgiven == carries
    assert replayer.packets == len(frames) - (not carries)


def test_acknowledgement_that_the_capture_lists_before_the_data() -> None:
    talk = download()
    talk.server("PA", 5001, 1, length=100)
    talk.frames[-1].octets = with_checksum(0xBEEF, talk.frames[-1].octets)
    talk.client("A", 1, 5101)
    early, late = talk.frames[-1], talk.frames[-2]
    early.time_ns, late.time_ns = late.time_ns, early.time_ns
    talk.frames[-2:] = [early, late]
    found, checksums = reasons(talk)
    assert Reason.BAD_CHECKSUM not in found
    assert (checksums.forgiven, checksums.broken) == (1, 0)


def test_headers_of_a_host_whose_segments_arrive() -> None:
    """If one of its segments arrived, its earlier acknowledgements did too."""
    talk = Conversation()
    talk.open()
    talk.client("A", 1, 1)
    talk.client("PA", 1, 1, length=10)
    talk.server("A", 1, 11)
    for frame in talk.frames[2:5]:
        frame.octets = with_header_sum(frame.octets, b"\x12\x34")
    replayer = Replayer(ReplaySettings())
    frames = download(50_000).frames + talk.frames
    assert [*replayer.replay(frames), *replayer.finish()] == []
    assert replayer.reader.without_packet == {}
    assert replayer.reader.checksums.forgiven == 3


def test_header_sums_that_a_tool_left_behind() -> None:
    """Wrong in most packets, as addresses were rewritten; 0 is left to the NIC."""
    for field in (b"\x12\x34", b"\0\0"):
        talk = download()
        for frame in talk.frames:
            frame.octets = with_header_sum(frame.octets, field)
        replayer = Replayer(ReplaySettings())
        assert [*replayer.replay(talk.frames), *replayer.finish()] == []
        assert replayer.reader.without_packet == {}


def test_ignored_sums_are_those_of_headers_too() -> None:
    talk = download()
    talk.frames[-1].octets = with_header_sum(talk.frames[-1].octets, b"\x12\x34")
    replayer = Replayer(ReplaySettings(checksums=ChecksumMode.IGNORE))
    replayer.replay(talk.frames)
    assert replayer.reader.without_packet == {}


def test_datagram_in_fragments_has_the_headers_of_its_fragments() -> None:
    """Each header has its own checksum; one of the whole datagram was never sent."""
    whole = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / Raw(bytes(3000))
    talk = download()
    for part in fragment(whole, 1400):
        talk.add(bytes(part))
    replayer = Replayer(ReplaySettings())
    assert not replayer.replay(talk.frames)
    assert replayer.reader.without_packet == {"a fragment whose datagram is not whole": 2}
    broken = talk.frames[-1]
    broken.octets = with_header_sum(broken.octets, b"\x12\x34")
    replayer = Replayer(ReplaySettings())
    assert not replayer.replay(talk.frames)
    assert replayer.reader.without_packet == {
        "a fragment whose datagram is not whole": 2,
        "an IP header that the kernel throws away": 1,
    }


def test_fragment_whose_header_was_not_captured_whole() -> None:
    """Its options are beyond the end of the frame."""
    whole = IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_NOP()] * 40)
    part = bytes(fragment(whole / UDP(sport=1, dport=2) / Raw(bytes(3000)), 1400)[0])
    for length in (20, 21, 59):
        talk = download()
        talk.add(part[:length])
        replayer = Replayer(ReplaySettings())
        assert not replayer.replay(talk.frames)
        assert replayer.reader.without_packet == {"a fragment whose datagram is not whole": 1}


def test_packet_of_length_0_is_yet_to_be_cut() -> None:
    """The NIC writes the headers of its segments, so neither sum of this packet counts."""
    talk = download()
    whole = talk.frames[-1].octets
    talk.frames[-1].octets = with_header_sum(whole[:2] + b"\0\0" + whole[4:], b"\x12\x34")
    replayer = Replayer(ReplaySettings())
    assert not replayer.replay(talk.frames)
    assert replayer.packets == len(talk.frames)
