# SPDX-License-Identifier: MIT
"""Frames that take the shortcut have the same outcome as on the general path."""

import io
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
import pytest

from benchmarks.mixed import internet_sum, write_mixed
from nfq_guard.capture.frame import Frame
from nfq_guard.capture.pcap import HEADER_BYTES, PcapScanner
from nfq_guard.conntrack.kernel_rules import KERNELS
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.finding import Reason
from nfq_guard.replay.checksums import ChecksumMode
from nfq_guard.replay.copies import Copies
from nfq_guard.replay.flow_list import flow_record
from nfq_guard.replay.frame_record import record
from nfq_guard.replay.listing import Listing
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.summary import Summary
from nfq_guard.wire.packet import Packet, Segment
from tests.support.conversation import Conversation

# They cover the parts of checksums and of the table of conntrack that only a replay calls.
pytestmark = pytest.mark.cover

MACS = b"\x02\0\0\0\0\1\x02\0\0\0\0\2"
ETHERNET = 1


def on_ethernet(frame: Frame, tag: bytes = b"") -> Frame:
    kind = b"\x86\xdd" if frame.octets[0] >> 4 == 6 else b"\x08\0"
    octets = MACS + tag + kind + frame.octets
    return replace_octets(frame, octets)


def replace_octets(frame: Frame, octets: bytes) -> Frame:
    return Frame(frame.number, frame.time_ns, ETHERNET, max(len(octets), 60), octets, 0)


def numbered(frames: Sequence[Frame]) -> list[Frame]:
    return [
        Frame(number, frame.time_ns, frame.linktype, frame.wire_len, frame.octets, 0)
        for number, frame in enumerate(frames, start=1)
    ]


def opened(settings: ReplaySettings) -> Replayer:
    """A replay that does not search for copies; before the end of the search, no frame takes it."""
    replayer = Replayer(settings)
    replayer.copies = Copies(searched=0)
    return replayer


def results(frames: Sequence[Frame], settings: ReplaySettings) -> list[bytes]:
    """All results of a replay."""
    replayer = opened(settings)
    replayer.streams.listing = Listing()
    outcomes = replayer.replay(list(frames)) + replayer.finish()
    summary = Summary()
    for outcome in outcomes:
        summary.add(outcome)
    said = [
        *(record(outcome, ["a"]) for outcome in outcomes),
        summary.as_object(replayer, settings, 0.0),
        *(flow_record(stream, replayer.now) for stream in replayer.streams.listing.streams),
        replayer.caused_resets,
        len(replayer.table),
    ]
    return [orjson.dumps(one) for one in said]


def assert_alike(frames: Sequence[Frame], settings: ReplaySettings) -> None:
    """Compare the shortcut with the general path, which a watched replay takes."""
    general = results(frames, replace(settings, watched=True))
    assert results(frames, settings) == general


def mixed(seed: int, *, open_at_once: int = 40) -> list[Frame]:
    """Traffic of all kinds."""
    file = io.BytesIO()
    write_mixed(file, 2_500, seed, open_at_once=open_at_once)
    frames: list[Frame] = []
    whole = file.getvalue()
    PcapScanner(whole[:HEADER_BYTES], 0).scan(whole[HEADER_BYTES:], frames)
    return frames


def damaged(frames: Sequence[Frame], seed: int) -> list[Frame]:
    """Frames lost and swapped, bits flipped, and some cut."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    kept = [frame for frame in frames if rng.random() > 0.03]
    for place in range(len(kept) - 1):
        if rng.random() < 0.03:
            kept[place], kept[place + 1] = kept[place + 1], kept[place]
        octets = bytearray(kept[place].octets)
        if rng.random() < 0.2:
            octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.05:
            del octets[rng.randrange(14, len(octets)) :]
        frame = kept[place]
        kept[place] = Frame(0, frame.time_ns, frame.linktype, frame.wire_len, bytes(octets), 0)
    return numbered(kept)


@pytest.mark.compiled
@pytest.mark.parametrize("mode", list(ChecksumMode))
def test_mixed_traffic_has_the_same_outcome(mode: ChecksumMode) -> None:
    assert_alike(mixed(1), ReplaySettings(checksums=mode))


@pytest.mark.compiled
def test_damaged_traffic_has_the_same_outcome() -> None:
    assert_alike(damaged(mixed(2), 1), ReplaySettings())


@pytest.mark.compiled
def test_an_old_kernel_and_a_small_table_give_the_same_outcome() -> None:
    settings = ReplaySettings(kernel=KERNELS["5.10"], capacity=20)
    assert_alike(mixed(3, open_at_once=200), settings)


def conversation(family: int = 4) -> Conversation:
    talk = Conversation(family=family)
    talk.open()
    talk.client("PA", 1, 1, length=100)
    talk.server("A", 1, 101)
    talk.server("PA", 1, 101, length=1448)
    talk.server("PA", 1449, 101, length=301)
    talk.client("A", 101, 1750, options=[("Timestamp", (1, 2))])
    return talk


def took(frames: Sequence[Frame], settings: ReplaySettings | None = None) -> bool:
    """Whether the last frame takes the shortcut, which leaves no packet behind."""
    replayer = opened(ReplaySettings() if settings is None else settings)
    replayer.replay(list(frames[:-1]))
    before = replayer.reader.packet
    replayer.replay(list(frames[-1:]))
    return replayer.reader.packet is before


def ethernet_of(talk: Conversation, tag: bytes = b"") -> list[Frame]:
    return [on_ethernet(frame, tag) for frame in talk.frames]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tag", [b"", b"\x81\0\0\x64"])
def test_segments_of_a_known_flow_take_it(family: int, tag: bytes) -> None:
    assert took(ethernet_of(conversation(family), tag))


def test_a_watched_replay_goes_the_general_way() -> None:
    assert not took(ethernet_of(conversation()), ReplaySettings(watched=True))


def summed(octets: bytes) -> bytes:
    """With the right checksum in its IPv4 header, behind the link header."""
    head = octets[14:24] + b"\0\0" + octets[26:34]
    return octets[:24] + struct.pack("!H", internet_sum(head)) + octets[26:]


def at(place: int, value: int) -> Callable[[bytes], bytes]:
    return lambda octets: octets[:place] + bytes([value]) + octets[place + 1 :]


ODD: dict[str, Callable[[bytes], bytes]] = {
    "too short": lambda octets: octets[:40],
    "no IP": at(12, 0x06),
    "IPv6 in the link header": lambda octets: octets[:12] + b"\x86\xdd" + octets[14:],
    "options of IP": lambda octets: summed(at(14, 0x46)(octets)),
    "a fragment": lambda octets: summed(at(20, 0x20)(octets)),
    "a later fragment": lambda octets: summed(at(21, 1)(octets)),
    "another protocol": lambda octets: summed(at(23, 47)(octets)),
    "longer than captured": lambda octets: octets[:-1],
    "shorter than its header": lambda octets: summed(at(17, 24)(octets)),
    "no whole header": lambda octets: summed(at(17, 36)(octets)),
    "a broken header": at(24, 1),
    "a broken segment": lambda octets: octets[:-1] + b"z",
    "a broken offset": at(46, 0x10),
    "RST": at(47, 0x14),
    "SYN": at(47, 0x02),
    "no flags": at(47, 0),
}


@pytest.mark.parametrize("name", list(ODD))
def test_odd_segments_go_the_general_way(name: str) -> None:
    talk = conversation()
    talk.client("PA", 101, 1750, length=40)
    *frames, last = ethernet_of(talk)
    odd = [*frames, replace_octets(last, ODD[name](last.octets))]
    assert not took(odd)
    for mode in ChecksumMode:
        assert_alike(numbered([*odd, last]), ReplaySettings(checksums=mode))


@pytest.mark.parametrize("with_length", [False, True])
def test_segments_with_unfinished_checksums_take_it(*, with_length: bool) -> None:
    talk = conversation()
    talk.client("PA", 101, 1750, length=40)
    *frames, last = ethernet_of(talk)
    octets = last.octets
    pseudo = octets[26:34] + struct.pack("!HH", 6, (len(octets) - 34) * with_length)
    field = ~internet_sum(pseudo) & 0xFFFF
    unfinished = replace_octets(last, octets[:50] + struct.pack("!H", field) + octets[52:])
    assert took([*frames, unfinished])
    assert not took([*frames, unfinished], ReplaySettings(checksums=ChecksumMode.VERIFY))
    for mode in ChecksumMode:
        assert_alike([*frames, unfinished], ReplaySettings(checksums=mode))


def test_frames_of_other_links_and_files_go_the_general_way() -> None:
    talk = conversation()
    *frames, last = ethernet_of(talk)
    bare = talk.frames[-1]
    assert not took([*frames, bare])
    other = Frame(last.number, last.time_ns, ETHERNET, last.wire_len, last.octets, 1)
    assert not took([*frames, other])


def test_segments_outside_the_window_have_the_same_outcome() -> None:
    talk = conversation()
    talk.server("PA", 50_000_000, 101, length=31)
    talk.client("PA", 101, 90_000_000, length=31)
    talk.server("A", -90_000_000, 101)
    talk.client("FA", 101, 1750)
    talk.server("FA", 1750, 102)
    talk.client("A", 102, 1751)
    for kernel in KERNELS.values():
        assert_alike(ethernet_of(talk), ReplaySettings(kernel=kernel))
    replayer = opened(ReplaySettings())
    outcomes = replayer.replay(ethernet_of(talk)) + replayer.finish()
    reasons = [outcome.finding and outcome.finding.reason for outcome in outcomes]
    assert reasons == [Reason.SEQ_OVER, Reason.ACK_OVER]


def test_an_expired_flow_goes_the_general_way() -> None:
    talk = conversation()
    talk.client("PA", 101, 1750, length=40, wait=1e6)
    assert not took(ethernet_of(talk))
    lasting = ReplaySettings(sysctls=replace(DEFAULT_SYSCTLS, expires=False))
    assert took(ethernet_of(talk), lasting)


def datagram(sport: int, dport: int, data: bytes, *, length: int = 0, checksum: int = -1) -> bytes:
    ends = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    size = 8 + len(data)
    head = struct.pack("!HHH", sport, dport, length or size)
    if checksum < 0:
        checksum = internet_sum(ends + struct.pack("!HH", 17, size) + head + bytes(2) + data)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0, 64, 17, 0)
    ip = ip[:10] + struct.pack("!H", internet_sum(ip + ends)) + ends
    return MACS + b"\x08\0" + ip + head + struct.pack("!H", checksum) + data


def datagrams(*octets: bytes) -> list[Frame]:
    start_ns = 1_700_000_000_000_000_000
    return [
        Frame(number, start_ns + number, ETHERNET, len(one), one, 0)
        for number, one in enumerate(octets, start=1)
    ]


def test_datagrams_of_a_known_flow_take_it() -> None:
    plain = datagram(1000, 53, b"question")
    assert took(datagrams(plain, plain))
    unfinished = datagram(1000, 53, b"question", checksum=20 * 256 + 2 + 17 + 1 + 16)
    assert_alike(datagrams(plain, unfinished), ReplaySettings())
    assert took(datagrams(plain, unfinished))
    assert_alike(datagrams(plain, plain, plain), ReplaySettings())


ODD_DATAGRAMS = {
    "no checksum": datagram(1000, 53, b"question", checksum=0),
    "a wrong checksum": datagram(1000, 53, b"question", checksum=5),
    "a length below the header": datagram(1000, 53, b"question", length=7),
    "a length beyond the packet": datagram(1000, 53, b"question", length=17),
    "a tunnel": datagram(1000, 4789, b"\x08" + bytes(60)),
}


@pytest.mark.parametrize("name", list(ODD_DATAGRAMS))
def test_odd_datagrams_go_the_general_way(name: str) -> None:
    odd = ODD_DATAGRAMS[name]
    plain = datagram(1000, 53, b"question")
    assert not took(datagrams(plain, odd, odd))
    assert_alike(datagrams(plain, odd, odd, plain), ReplaySettings())


@pytest.mark.compiled
def test_many_flows_are_forgotten_and_learnt_again() -> None:
    """More directions than the shortcut remembers, while the first flow continues."""
    first = datagram(1, 53, b"question")
    frames = [first]
    for number in range(17_000):
        frames.append(datagram(2000 + number, 99, b"question"))
        if number % 1000 == 0:
            frames.append(first)
    assert took(datagrams(*frames, first))


def test_the_packet_of_an_invalid_segment_is_shown() -> None:
    talk = conversation()
    talk.server("PA", 50_000_000, 101, length=31)
    replayer = opened(ReplaySettings())
    replayer.replay(ethernet_of(talk))
    (outcome,) = replayer.finish()
    assert isinstance(outcome.packet, Packet)
    assert isinstance(outcome.packet.l4, Segment)
    assert outcome.packet.l4.payload_len == 31
