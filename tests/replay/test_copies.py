# SPDX-License-Identifier: MIT
"""Packets that several frames show are judged once, and translations are joined."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import ETHERNET, NFLOG
from nfq_guard.cli import main
from nfq_guard.conntrack.entry import reverse
from nfq_guard.finding import Reason
from nfq_guard.flow import Nat
from nfq_guard.policy.default import default_policy
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from tests.support import captures
from tests.support.conversation import SYN_OPTIONS, Conversation

# They cover the parts of the table of conntrack that only a replay calls.
pytestmark = pytest.mark.cover

SLL = 113
CLIENT, SERVICE, POD, ROUTER = (bytes([10, 0, 0, last]) for last in (1, 2, 8, 9))
INCOMING, OUTGOING = 0, 4


def cooked(octets: bytes, kind: int) -> bytes:
    return struct.pack("!HHH8sH", kind, 1, 6, bytes(8), 0x0800) + octets


def rewritten(octets: bytes, *, src: bytes | None = None, dst: bytes | None = None) -> bytes:
    """As a router forwards it, one hop later; `numbered` updates the header checksum."""
    packet = bytearray(octets)
    packet[8] -= 1
    packet[12:16] = src or packet[12:16]
    packet[16:20] = dst or packet[16:20]
    return bytes(packet)


def numbered(octets: bytes, identification: int) -> bytes:
    return summed(octets[:4] + struct.pack("!H", identification) + octets[6:])


def summed(octets: bytes) -> bytes:
    """The packet with a correct checksum in its IPv4 header."""
    words = struct.unpack("!10H", octets[:10] + b"\0\0" + octets[12:20])
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    field = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return octets[:10] + struct.pack("!H", field) + octets[12:]


class AnyCapture:
    """A capture on `any` of a host that forwards, and translates if requested."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def show(self, octets: bytes, time_ns: int, kind: int) -> None:
        number = len(self.frames) + 1
        packet = cooked(octets, kind)
        self.frames.append(Frame(number, time_ns, SLL, len(packet), packet, 0))

    def pass_on(self, frame: Frame, octets: bytes) -> None:
        """The packet arrives as `frame` and leaves as `octets`."""
        self.show(numbered(frame.octets, frame.number), frame.time_ns, INCOMING)
        self.show(numbered(octets, frame.number), frame.time_ns + 20_000, OUTGOING)


def talk_of_service(client_isn: int = 1000) -> Conversation:
    """From the client to 10.0.0.2, as the client sees it, with 1,500 bytes of answer."""
    talk = Conversation(client_isn=client_isn)
    talk.open()
    talk.client("PA", 1, 1, length=18)
    talk.server("A", 1, 19)
    talk.server("PA", 1, 19, length=1500)
    talk.client("A", 19, 1501)
    return talk


def node(talk: Conversation, stray: Sequence[int] = ()) -> list[Frame]:
    """The same on `any` of the node that translates to the pod; `stray` frames escape it."""
    shown = AnyCapture()
    for frame in talk.frames:
        octets = frame.octets
        from_client = octets[12:16] == CLIENT
        if frame.number in stray:
            untranslated = {"dst": POD} if from_client else {"src": POD}
            frame.octets = (
                octets[:12]
                + (octets[12:16] + POD if from_client else POD + octets[16:20])
                + octets[20:]
            )
            shown.pass_on(frame, rewritten(frame.octets, **untranslated))
        elif from_client:
            shown.pass_on(frame, rewritten(octets, dst=POD))
        else:
            frame.octets = octets[:12] + POD + octets[16:]
            shown.pass_on(frame, rewritten(frame.octets, src=SERVICE))
    return shown.frames


def replayed(frames: list[Frame]) -> tuple[Replayer, list[Outcome]]:
    replayer = Replayer(ReplaySettings(), default_policy())
    return replayer, [*replayer.replay(frames), *replayer.finish()]


def test_both_sides_of_a_translation_are_one_flow() -> None:
    talk = talk_of_service()
    replayer, found = replayed(node(talk))
    assert found == []
    assert replayer.packets == len(talk.frames)
    assert replayer.copies.copies == len(talk.frames)
    assert (replayer.table.created, replayer.translations) == (1, 1)
    assert not replayer.streams.began_before


@pytest.mark.parametrize("kind", [INCOMING, OUTGOING])
def test_one_half_of_each_packet_of_a_translation(kind: int) -> None:
    """As `-Q in` and `-Q out` capture it: the answer has another tuple."""
    talk = talk_of_service(0xFFFFFFFF)
    shown = [frame for frame in node(talk) if frame.octets[1] == kind]
    replayer, found = replayed(shown)
    assert found == []
    assert (replayer.packets, replayer.copies.copies) == (len(talk.frames), 0)
    assert (replayer.table.created, replayer.translations) == (1, 1)
    assert replayer.streams.one_way() == 0
    snapshot = replayer.table.snapshot()
    assert snapshot is not None
    assert snapshot.nat is Nat.DNAT


def test_stray_that_escapes_is_judged_once_and_by_the_translation() -> None:
    """The stray is INVALID and dropped; the RST to the address of the pod is INVALID too."""
    talk = talk_of_service()
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)
    stray = len(talk.frames) - 1
    replayer, found = replayed(node(talk, stray=(stray, stray + 1)))
    assert [one.finding.reason for one in found if one.finding] == [
        Reason.SEQ_OVER,
        Reason.NO_ENTRY,
    ]
    first = found[0]
    assert first.doubted is None
    assert first.snapshot is not None
    assert first.snapshot.nat is Nat.DNAT
    assert first.snapshot.original.dst == SERVICE
    assert first.decision is not None
    assert first.decision.drops
    assert replayer.packets == len(talk.frames)


def test_masquerading_router() -> None:
    """Source translation: the answers arrive for the router's own address."""
    shown = AnyCapture()
    talk = talk_of_service()
    for frame in talk.frames:
        octets = frame.octets
        if octets[12:16] == CLIENT:
            shown.pass_on(frame, rewritten(octets, src=ROUTER))
        else:
            frame.octets = octets[:16] + ROUTER + octets[20:]
            shown.pass_on(frame, rewritten(frame.octets, dst=CLIENT))
    replayer, found = replayed(shown.frames)
    assert found == []
    assert (replayer.table.created, replayer.translations) == (1, 1)
    entry = replayer.table.entry
    assert entry is not None
    assert entry.snapshot(0, 0.0).nat is Nat.SNAT


@pytest.mark.parametrize("hops", [1, 0])
def test_rst_of_a_masquerading_router(
    hops: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A segment beyond the window stays with the router, which resets the server.

    The RST leaves with the tuple of the client's translated packets. Its hop limit tells, or that
    it answers the INVALID packet. The kernel calls both INVALID, measured with 6.18.44.
    """
    shown = AnyCapture()
    talk = talk_of_service()
    for frame in talk.frames:
        octets = frame.octets
        from_client = octets[12:16] == CLIENT
        if not from_client:
            frame.octets = octets[:16] + ROUTER + octets[20:]
        left = rewritten(octets, src=ROUTER) if from_client else rewritten(octets, dst=CLIENT)
        shown.pass_on(frame, left[:8] + bytes([64 - hops]) + left[9:])
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)
    beyond, rst = (frame.octets for frame in talk.frames[-2:])
    time_ns = talk.frames[-1].time_ns
    shown.show(numbered(beyond[:16] + ROUTER + beyond[20:], 900), time_ns, INCOMING)
    shown.show(numbered(rst[:12] + ROUTER + rst[16:], 0), time_ns + 30_000, OUTGOING)
    replayer, found = replayed(shown.frames)
    assert [one.finding.reason for one in found if one.finding] == [
        Reason.SEQ_OVER,
        Reason.NO_ENTRY,
    ]
    assert [one.doubted for one in found] == [None, None]
    assert [(frame, cause.frame) for frame, cause in replayer.resets] == [(16, 15)]
    path = tmp_path / "any.pcap"
    records = [
        (one.time_ns // 10**9, one.time_ns // 1000 % 10**6, one.octets) for one in shown.frames
    ]
    path.write_bytes(captures.pcap(records, linktype=SLL))
    assert main(["whatif", str(path), "--policy", "preset:observe", "--format", "json"]) == 0
    (policy,) = json.loads(capsys.readouterr().out)["policies"]
    assert policy["false_negatives"]["packets"] == 1


def test_rst_that_escapes_on_a_link_without_an_address() -> None:
    """On one tun interface packets arrive where they leave, with the tuple of translated ones.

    The client answers a stray of the pod with an RST to the pod, one hop before those that left.
    """
    talk = talk_of_service()
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)
    stray = len(talk.frames) - 1
    frames = node(talk, stray=(stray, stray + 1))
    for frame in frames:
        frame.octets = frame.octets[16:]
        frame.linktype = 101
    _, found = replayed(frames)
    assert [one.finding.reason for one in found if one.finding] == [
        Reason.SEQ_OVER,
        Reason.NO_ENTRY,
    ]


@pytest.mark.parametrize("times", [2, 3])
def test_bridge_or_mirror_port(times: int) -> None:
    """Each packet is captured several times in the same place, throughout the file."""
    talk = talk_of_service()
    talk.client("FA", 19, 1501)
    talk.server("FA", 1501, 20)
    talk.client("A", 20, 1502)
    talk.client("R", 20)
    shown = AnyCapture()
    for frame in talk.frames:
        for copy in range(times):
            octets = numbered(frame.octets, frame.number)
            shown.show(octets, frame.time_ns + copy * 1_000_000, INCOMING)
    replayer, found = replayed(shown.frames)
    assert found == []
    assert replayer.copies.copies == (times - 1) * len(talk.frames)


BRIDGED = 0xFEED


def bridged(talk: Conversation, *, of_others: int) -> list[Frame]:
    """On `any` of a node whose bridge translates (bridge-nf-call-iptables), without interfaces.

    What the pod sends is seen at the port of the bridge, and in the same place as the bridge passes
    it on: translated, if it has the address of the service. `of_others` packets of the node's own
    flow come before each, which no bridge passes.
    """
    shown = AnyCapture()
    for frame in talk.frames:
        for other in range(of_others):
            own = Conversation(client_isn=frame.number * 90_000 + other)
            own.sport = 50_000 + frame.number * 10 + other
            own.client("S", 0)
            octets = own.frames[0].octets
            octets = summed(octets[:12] + ROUTER + octets[16:])
            shown.show(octets, frame.time_ns - 90_000 + other, OUTGOING)
        octets = numbered(frame.octets, frame.number + BRIDGED)
        if octets[12:16] == CLIENT:
            to_service = octets[16:20] == SERVICE
            inside = summed(octets[:16] + POD + octets[20:]) if to_service else octets
            shown.show(octets, frame.time_ns, INCOMING)
            shown.show(inside, frame.time_ns + 3_000, INCOMING)
            shown.show(summed(rewritten(inside)), frame.time_ns + 9_000, OUTGOING)
        else:
            octets = summed(octets[:12] + POD + octets[16:])
            from_pod = summed(rewritten(octets))
            answer = summed(from_pod[:12] + SERVICE + from_pod[16:])
            shown.show(octets, frame.time_ns, INCOMING)
            for later in (9_000, 12_000):
                leaving = from_pod if frame.number == len(talk.frames) - 1 else answer
                shown.show(leaving, frame.time_ns + later, OUTGOING)
    return shown.frames


@pytest.mark.parametrize("of_others", [0, 2])
def test_bridge_that_translates_on_any_without_interfaces(of_others: int) -> None:
    """The last answer escapes its translation, and the client refuses it."""
    talk = talk_of_service(0x10_0000)
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)
    reset = talk.frames[-1]
    reset.octets = summed(reset.octets[:16] + POD + reset.octets[20:])
    replayer, found = replayed(bridged(talk, of_others=of_others))
    assert [one.finding.reason for one in found if one.finding] == [
        Reason.SEQ_OVER,
        Reason.NO_ENTRY,
    ]
    assert replayer.copies.copies == 2 * len(talk.frames)
    assert replayer.translations == 1
    assert replayer.packets == (1 + of_others) * len(talk.frames)


@pytest.mark.parametrize(
    ("copied", "said"), [(1, "1 frame shows an earlier"), (2, "2 frames show an earlier")]
)
def test_copies_are_counted_in_words(
    copied: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records: list[tuple[int, int, bytes]] = []
    for frame in talk_of_service().frames:
        shown = cooked(numbered(frame.octets, frame.number), INCOMING)
        times = 2 if frame.number <= copied else 1
        records += [(frame.time_ns // 10**9, frame.time_ns // 1000 % 10**6, shown)] * times
    path = tmp_path / "copies.pcap"
    path.write_bytes(captures.pcap(records, linktype=SLL))
    assert main(["replay", str(path)]) == 0
    assert f"{said} packet again: not judged" in capsys.readouterr().out


@pytest.mark.parametrize("zero", [True, False])
def test_mirror_of_packets_without_identification(zero: bool) -> None:
    """IPv6, and IPv4 with the identification 0, as many hosts send it."""
    talk = Conversation(family=4 if zero else 6)
    talk.open()
    for start in range(1, 20_001, 1000):
        talk.server("A", start, 1, length=1000)
        talk.client("A", 1, start + 1000)
    talk.server("PA", 40_000_000, 1, length=31)
    talk.client("R", 1)
    frames: list[Frame] = []
    for frame in talk.frames:
        octets = numbered(frame.octets, 0) if zero else frame.octets
        for copy in range(2):
            time_ns = frame.time_ns + copy * 3_000
            frames.append(Frame(len(frames) + 1, time_ns, 101, len(octets), octets, 0))
    replayer, found = replayed(frames)
    assert replayer.copies.copies == len(talk.frames)
    assert [one.finding.reason for one in found if one.finding] == [Reason.SEQ_OVER]


def test_repeated_acknowledgements_without_identification_are_no_mirror() -> None:
    """A receiver acknowledges the data before a lost segment again and again."""
    talk = Conversation(family=6)
    talk.open()
    for start in range(1, 5_001, 1000):
        talk.server("A", start, 1, length=1000)
        talk.client("A", 1, start + 1000)
    for start in range(6_001, 9_001, 1000):
        talk.server("A", start, 1, length=1000)
        talk.client("A", 1, 5_001, wait=0.0005)
    talk.server("A", 5_001, 1, length=1000)
    talk.client("A", 1, 9_001)
    replayer, found = replayed(talk.frames)
    assert found == []
    assert replayer.packets == len(talk.frames)


def test_repetition_by_the_network_is_judged() -> None:
    """One packet that arrives twice is not an artefact of the capture."""
    talk = talk_of_service()
    for _ in range(3):
        talk.server("PA", 10_000_000, 19, length=31, wait=0.001)
    replayer, found = replayed(talk.frames)
    assert len(found) == 3
    assert replayer.copies.copies == 0


NFLOG_OF_TIME = bytes([10, 0, 0, 0]) + struct.pack("<HHHBx", 8, 1, 0x86DD, 0)
PPPOE = bytes(12) + b"\x88\x64\x11\x00\x00\x07"


def logged(octets: bytes, second: int) -> tuple[int, bytes]:
    stamp = struct.pack("<HHQQ", 20, 3, second, 0)
    return NFLOG, NFLOG_OF_TIME + stamp + struct.pack("<HH", 4 + len(octets), 9) + octets


def session(octets: bytes, _: int) -> tuple[int, bytes]:
    return ETHERNET, PPPOE + struct.pack("!H", 2 + len(octets)) + b"\0\x57" + octets


@pytest.mark.parametrize("show", [logged, session])
def test_retransmission_of_another_length_is_no_copy(
    show: Callable[[bytes, int], tuple[int, bytes]],
) -> None:
    """A link header with a length or a time differs without another place."""
    talk = Conversation(family=6)
    talk.open()
    talk.server("A", 1, 1, length=1440)
    talk.server("A", 1, 1, length=1340)
    for frame in talk.frames:
        frame.linktype, frame.octets = show(frame.octets, frame.number)
    replayer, found = replayed(talk.frames)
    assert found == []
    assert (replayer.packets, replayer.copies.copies) == (5, 0)


def test_retransmission_is_no_copy() -> None:
    """It has an identification of its own."""
    talk = talk_of_service()
    shown = AnyCapture()
    for frame in talk.frames:
        shown.pass_on(frame, rewritten(frame.octets))
    again = talk.frames[5]
    shown.show(numbered(again.octets, 99), talk.frames[-1].time_ns + 1_000_000, INCOMING)
    replayer, _ = replayed(shown.frames)
    assert replayer.packets == len(talk.frames) + 1


def test_several_interfaces_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pcapng names the interface of each frame; IPv6 has no identification."""
    talk = Conversation(family=6)
    talk.open()
    talk.client("PA", 1, 1, length=18)
    blocks = [captures.section(), captures.interface(101), captures.interface(101)]
    for frame in talk.frames:
        for number in (0, 1):
            octets = frame.octets[:7] + bytes([64 - number]) + frame.octets[8:]
            ticks = frame.time_ns // 1000 + number
            blocks.append(captures.enhanced(octets, ticks, number=number))
    path = tmp_path / "two.pcapng"
    path.write_bytes(b"".join(blocks))
    assert main(["replay", str(path), "--summary", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["packets"], summary["copies"]) == (4, 4)
    assert main(["replay", str(path), "--all", "--format", "json"]) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[1]["absent"] == "a copy of an earlier frame"
    assert main(["explain", str(path), "2"]) == 0
    assert "The kernel judges it once" in capsys.readouterr().out


def test_two_captures_of_one_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file a side of the translation."""
    frames = node(talk_of_service())
    paths: list[str] = []
    for name, kind in (("outer", INCOMING), ("inner", OUTGOING)):
        records = [
            (frame.time_ns // 10**9, frame.time_ns // 1000 % 10**6, frame.octets[16:])
            for frame in frames
            if (frame.octets[1] == kind) is (frame.octets[28:32] == CLIENT)
        ]
        path = tmp_path / f"{name}.pcap"
        path.write_bytes(captures.pcap(records, linktype=101))
        paths.append(str(path))
    assert main(["replay", *paths, "--summary", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["flows"], summary["translations"]) == (1, 1)
    assert summary["ctstate"]["INVALID"] == 0


@pytest.mark.parametrize("flags", ["PA", "R", "RA"])
def test_escaped_packet_on_the_client_s_side(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pod's own address, and the exact state of a live flow: data or an RST."""
    talk = talk_of_service()
    talk.server(flags, 1501, None if flags == "R" else 19)
    escaped = talk.frames[-1]
    escaped.octets = summed(escaped.octets[:12] + POD + escaped.octets[16:])
    path = talk.save(tmp_path / "outer.pcap")
    assert main(["replay", path, "--summary", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["untranslated"] == [
        {
            "frame": len(talk.frames),
            "flow": "10.0.0.8:80 > 10.0.0.1:40000",
            "of": "10.0.0.1:40000 > 10.0.0.2:80",
        }
    ]
    assert main(["replay", path]) == 0
    assert "1 packet escaped the translation of a live flow" in capsys.readouterr().out
    assert main(["explain", path, str(len(talk.frames))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the exact state of 10.0.0.1:40000 > 10.0.0.2:80: it escaped the translation" in text
    told = "It is the untranslated twin of a live flow, which has its exact state" in text
    assert told is (flags != "PA"), "an RST is INVALID"


def test_other_packets_from_elsewhere_escaped_nothing() -> None:
    talk = talk_of_service()
    talk.server("PA", 1501, 300, length=10)
    other = talk.frames[-1]
    other.octets = summed(other.octets[:12] + POD + other.octets[16:])
    replayer, _ = replayed(talk.frames)
    assert replayer.streams.escapes.found == []


def test_policy_line_says_what_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = talk_of_service()
    talk.server("PA", 10_000_000, 19, length=31)
    path = talk.save(tmp_path / "one-side.pcap")
    assert main(["replay", path]) == 0
    assert "What the policy says (judged as untranslated: --assume-nat)" in capsys.readouterr().out
    assert main(["replay", path, "--assume-nat", "dnat"]) == 0
    assert "What the policy says\n" in capsys.readouterr().out


def test_one_way_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unanswered probe does not count as such a flow."""
    talk = talk_of_service()
    talk.frames = [frame for frame in talk.frames if frame.octets[12:16] == CLIENT]
    probe = Conversation(sport=40001)
    probe.client("S", 0, options=SYN_OPTIONS)
    probe.client("S", 0, options=SYN_OPTIONS, wait=1.0)
    talk.frames += probe.frames
    path = talk.save(tmp_path / "one-way.pcap")
    assert main(["replay", path, "--summary", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["one_way"], summary["doubt"]) == (1, {})
    assert main(["replay", path]) == 0
    assert "1 flow seen in one direction only" in capsys.readouterr().out


def test_untracked_packets_are_left_alone() -> None:
    """A translation that contradicts the table changes nothing there."""
    talk = talk_of_service()
    replayer, _ = replayed(talk.frames)
    table = replayer.table
    entry = table.entry
    assert entry is not None
    original, reply = entry.original, entry.reply
    other = (POD, *original[1:])
    assert not table.translate(reply, other)
    assert not table.translate(original, original)
    assert table.translate(original, other)
    assert not table.translate(original, other)
    assert not table.translate(other, original)
    assert entry.snapshot(0, 0.0).nat is Nat.SNAT


def test_no_two_flows_leave_with_one_tuple() -> None:
    """The tuple with which the replies of a translated flow arrive is taken."""
    talk = talk_of_service()
    other = Conversation(sport=40001)
    other.open()
    replayer, _ = replayed(talk.frames + other.frames)
    table = replayer.table
    second = table.entry
    assert second is not None
    first = (CLIENT, SERVICE, 40000 << 16 | 80, 6)
    leaving = (ROUTER, POD, 40000 << 16 | 80, 6)
    assert table.translate(first, leaving)
    assert not table.translate(second.original, reverse(leaving))
    assert second.reply == reverse(second.original)


def transfer(family: int) -> Conversation:
    """Blocks of data both ways, with timestamps, longer than any of the delays below."""
    talk = Conversation(client_isn=0x12345678, server_isn=0x23456789, family=family)
    talk.open()
    received = 1
    mark: list[tuple[str, object]] = []
    for turn in range(120):
        mark = [("NOP", b""), ("NOP", b""), ("Timestamp", (turn, turn))]
        talk.client("PA", 1 + 100 * turn, received, length=100, options=mark, wait=0.03)
        for part in range(8):
            at = received + 1400 * part
            end = 101 + 100 * turn
            talk.server("A", at, end, length=1400, options=mark, wait=0.0001 if part else 0.03)
        received += 1400 * 8
        talk.client("A", 101 + 100 * turn, received, options=mark, wait=0.0001)
    talk.client("FA", 12_001, received, options=mark)
    talk.server("FA", received, 12_002, options=mark)
    talk.client("A", 12_002, received + 1, options=mark)
    return talk


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("later_s", [-2.5, -0.3, -0.06, 0.06, 0.3, 2.5])
def test_captures_of_both_hosts(family: int, later_s: float) -> None:
    """The clock of the second differs, or its packets travelled for that time."""
    frames: list[Frame] = []
    for frame in transfer(family).frames:
        if family == 4:
            frame.octets = numbered(frame.octets, frame.number)
        there = Frame(
            frame.number,
            frame.time_ns + int(later_s * 1e9),
            frame.linktype,
            frame.wire_len,
            summed(rewritten(frame.octets)) if family == 4 else frame.octets,
            1,
        )
        frames += (frame, there)
    frames.sort(key=lambda frame: frame.time_ns)
    replayer, found = replayed(frames)
    assert [one.finding for one in found] == []
    # The end of the handshake has no timestamp here, and in IPv6 no identification.
    assert len(frames) // 2 - replayer.copies.copies == (0 if family == 4 else 1)


def test_a_queue_before_a_translation() -> None:
    """Packets that a host shapes leave long after they arrived."""
    talk = talk_of_service(0x12345678)
    shown = node(talk)
    for place, frame in enumerate(shown):
        frame.time_ns += 300_000_000 * place
    replayer, found = replayed(shown)
    assert found == []
    assert replayer.copies.copies == len(talk.frames)
    assert (replayer.table.created, replayer.translations) == (1, 1)


def test_a_late_repetition_in_the_same_place_is_no_copy() -> None:
    """Its sender numbers all packets alike, and sent it again."""
    talk = talk_of_service(0x12345678)
    again = talk.frames[3]
    late = Frame(99, again.time_ns + 400_000_000, SLL, again.wire_len + 16, again.octets, 0)
    shown = AnyCapture()
    for frame in [*talk.frames, late]:
        shown.show(numbered(frame.octets, 7), frame.time_ns, INCOMING)
    replayer, found = replayed(shown.frames)
    assert found == []
    assert (replayer.copies.copies, replayer.packets) == (0, len(talk.frames) + 1)
