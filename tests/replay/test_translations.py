# SPDX-License-Identifier: MIT
"""Both sides of any address translation in one capture are one flow."""

import json
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from socket import inet_aton

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from nfq_guard.capture.frame import Frame
from nfq_guard.capture.links import ETHERNET
from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.flow import Nat
from nfq_guard.policy.default import default_policy
from nfq_guard.replay.copies import Copies
from nfq_guard.replay.listing import Listing
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from tests.support import captures
from tests.support.conversation import SYN_OPTIONS, Conversation
from tests.support.healthy import renumbered

SLL = 113
INCOMING, OUTGOING = 0, 4
ISNS = {"client_isn": 0x9123_4567, "server_isn": 0xA234_5678}

Ends = tuple[str | None, int | None]


@dataclass(frozen=True)
class Translation:
    """A host's translation of the ends of a flow, for its first packet; None leaves a part.

    `mss` is written over the option of a SYN, `rewrites_ids` gives each packet that leaves another
    identification.
    """

    source: Ends = (None, None)
    destination: Ends = (None, None)
    mss: int | None = None
    rewrites_ids: bool = False


POD: Ends = ("10.0.0.8", None)
PORT: Ends = (None, 8080)
POD_PORT: Ends = ("10.0.0.8", 8080)
ROUTER: Ends = ("10.0.0.9", None)
ROUTER_PORT: Ends = ("10.0.0.9", 31_234)

KINDS = {
    "dnat": Translation(destination=POD),
    "dnat of ports": Translation(destination=PORT),
    "dnat of both": Translation(destination=POD_PORT),
    "snat": Translation(source=ROUTER),
    "snat of both": Translation(source=ROUTER_PORT),
    "both ends": Translation(source=ROUTER_PORT, destination=POD_PORT),
    "clamped": Translation(source=ROUTER_PORT, mss=1200),
    "both ends, clamped": Translation(source=ROUTER_PORT, destination=POD_PORT, mss=1200),
    "new identifications": Translation(destination=POD_PORT, rewrites_ids=True),
}

# Packets of IPv6 have no identification.
CASES = [
    (kind, family)
    for kind, how in KINDS.items()
    for family in (4, 6)
    if family == 4 or not how.rewrites_ids
]


def address(end: str, family: int) -> str:
    return end if family == 4 else f"fd00::{end.rpartition('.')[2]}"


def cooked(octets: bytes, kind: int) -> bytes:
    proto = 0x0800 if octets[0] >> 4 == 4 else 0x86DD
    return struct.pack("!HHH8sH", kind, 1, 6, bytes(8), proto) + octets


def translate(packet: IP | IPv6, how: Translation, *, back: bool) -> None:
    """Rewrite a packet of the original direction, or of the other one `back`."""
    family = packet.version
    near, far = how.source, how.destination
    for (host, port), place in ((near, not back), (far, back)):
        if place:
            packet.src = packet.src if host is None else address(host, family)
            packet[TCP].sport = port or packet[TCP].sport
        else:
            packet.dst = packet.dst if host is None else address(host, family)
            packet[TCP].dport = port or packet[TCP].dport


def mended(packet: IP | IPv6) -> bytes:
    """The packet with correct checksums."""
    if packet.version == 4:
        del packet.chksum
    del packet[TCP].chksum
    return bytes(packet)


def routed(talk: Conversation, how: Translation) -> list[Frame]:
    """A capture on `any` of the host that translates: each packet as it comes and as it leaves."""
    frames: list[Frame] = []
    layer = IP if talk.family == 4 else IPv6
    for frame in talk.frames:
        inside, outside_ = layer(frame.octets), layer(frame.octets)
        back = inside[TCP].sport == 80
        came = inside
        if back:
            # Its address is that behind the translation, so that it comes with the other tuple.
            translate(came, how, back=True)
            came.src, came[TCP].sport, came.dst, came[TCP].dport = _behind(layer(frame.octets), how)
            left = outside_
        else:
            left = outside_
            translate(left, how, back=False)
        if talk.family == 4:
            came.id = left.id = frame.number + 100
            left.ttl -= 1
            if how.rewrites_ids:
                left.id = 50_000 - frame.number
        else:
            left.hlim -= 1
        if how.mss is not None and left[TCP].flags & 2:
            options = [(name, how.mss if name == "MSS" else value) for name, value in SYN_OPTIONS]
            left[TCP].options = options
        for packet, kind, later in ((came, INCOMING, 0), (left, OUTGOING, 20_000)):
            octets = cooked(mended(packet), kind)
            number = len(frames) + 1
            frames.append(Frame(number, frame.time_ns + later, SLL, len(octets), octets, 0))
    return frames


def _behind(packet: IP | IPv6, how: Translation) -> tuple[str, int, str, int]:
    """The ends of an answer when it arrives at the host."""
    family = packet.version
    host, port = how.destination
    to, to_port = how.source
    return (
        packet.src if host is None else address(host, family),
        port or packet[TCP].sport,
        packet.dst if to is None else address(to, family),
        to_port or packet[TCP].dport,
    )


def talk_of(family: int = 4, later: int = 0) -> Conversation:
    """An opening, requests and answers of some length, and an end; `later` on the same ports."""
    client_isn, server_isn = (isn + later * 0x1000_0000 for isn in ISNS.values())
    talk = Conversation(family=family, client_isn=client_isn, server_isn=server_isn)
    talk.now += later * 2.0
    talk.open()
    sent = mine = 1
    for length in (400, 3000, 900, 1400, 50, 2000):
        talk.client("PA", mine, sent, length=90)
        mine += 90
        talk.server("A", sent, mine)
        talk.server("PA", sent, mine, length=length)
        sent += length
        talk.client("A", mine, sent)
    talk.client("FA", mine, sent)
    talk.server("FA", sent, mine + 1)
    talk.client("A", mine + 1, sent + 1)
    return talk


def replayed(frames: list[Frame]) -> tuple[Replayer, list[Outcome]]:
    replayer = Replayer(ReplaySettings(), default_policy())
    return replayer, [*replayer.replay(renumbered(frames)), *replayer.finish()]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_one_flow(kind: str, family: int) -> None:
    talk = talk_of(family)
    replayer, found = replayed(routed(talk, KINDS[kind]))
    assert found == []
    assert (replayer.table.created, replayer.translations) == (1, 1)
    assert replayer.packets == replayer.copies.copies == len(talk.frames)
    assert not replayer.streams.began_before
    entry = replayer.table.entry
    assert entry is not None
    nat = entry.snapshot(0, 0.0).nat
    both = KINDS[kind].source != (None, None) and KINDS[kind].destination != (None, None)
    assert nat is (
        Nat.BOTH if both else Nat.SNAT if KINDS[kind].destination == (None, None) else Nat.DNAT
    )


@pytest.mark.compiled
@pytest.mark.parametrize(("kind", "family"), CASES)
@pytest.mark.parametrize("cut", [7, 8, 9, 10, 15])
def test_one_flow_from_its_middle(kind: str, family: int, cut: int) -> None:
    """From any frame on: that of either end, as it comes and as it leaves."""
    frames = routed(talk_of(family), KINDS[kind])[cut:]
    replayer, found = replayed(frames)
    assert found == []
    assert (replayer.table.created, replayer.translations) == (1, 1)
    assert len(replayer.streams.began_before) == 1
    assert outside(replayer.streams.began_before) == []


@pytest.mark.compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_frames_that_the_capture_lost(kind: str, seed: int) -> None:
    """The arrival of a packet may be missing, or its departure: the packet is judged once."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    frames = routed(talk_of(), KINDS[kind])
    kept = [frame for place, frame in enumerate(frames) if place < 4 or rng.random() >= 0.15]
    replayer, found = replayed(kept)
    assert [one for one in found if one.doubted is None] == []
    assert replayer.translations == 1


@pytest.mark.compiled
@pytest.mark.parametrize("kind", KINDS)
def test_any_one_frame_that_the_capture_lost(kind: str) -> None:
    """Of the handshake too: an answer that left translated had an entry."""
    frames = routed(talk_of(), KINDS[kind])
    for place in range(len(frames)):
        _, found = replayed(frames[:place] + frames[place + 1 :])
        assert [one for one in found if one.doubted is None] == [], place


@pytest.mark.compiled
@pytest.mark.parametrize("kind", KINDS)
def test_any_two_frames_that_the_capture_swapped(kind: str) -> None:
    frames = routed(talk_of(), KINDS[kind])
    for place in range(1, len(frames)):
        pair = frames[place - 1 : place + 1]
        _, found = replayed([*frames[: place - 1], *reversed(pair), *frames[place + 1 :]])
        assert [one for one in found if one.doubted is None] == [], place


@pytest.mark.parametrize("kind", KINDS)
def test_refused_connection(kind: str) -> None:
    """The RST has the sequence number 0: only the SYN shows how its flow is translated."""
    talk = Conversation(client_isn=ISNS["client_isn"], server_isn=0)
    talk.client("S", 0, win=64240, options=SYN_OPTIONS)
    talk.server("RA", 0, 1, win=0)
    replayer, found = replayed(routed(talk, KINDS[kind]))
    assert found == []
    assert (replayer.table.created, replayer.copies.copies) == (1, 2)


@pytest.mark.parametrize(
    "again",
    [Translation(destination=("10.0.0.7", 8080)), Translation(source=ROUTER_PORT)],
    ids=["another pod", "another kind"],
)
def test_the_next_connection_of_an_end_with_another_translation(again: Translation) -> None:
    """Nothing is left of the earlier translation, whichever frame the capture lost."""
    first = routed(talk_of(), KINDS["dnat of both"])
    second = routed(talk_of(later=1), again)
    replayer, found = replayed(first + second)
    assert found == []
    assert (replayer.table.created, replayer.translations) == (2, 2)
    for place in range(len(second)):
        replayer, found = replayed(first + second[:place] + second[place + 1 :])
        assert [one for one in found if one.doubted is None] == [], place
        assert replayer.streams.escapes.found == []
        assert replayer.table.created == 2, place


def readdressed(frames: list[Frame], family: int, start_s: float) -> list[Frame]:
    """The frames with the pod in the server's place, moved in time."""
    layer = IP if family == 4 else IPv6
    server, pod = (address(end, family) for end in ("10.0.0.2", "10.0.0.8"))
    for frame in frames:
        packet = layer(frame.octets[16:])
        packet.src = pod if packet.src == server else packet.src
        packet.dst = pod if packet.dst == server else packet.dst
        frame.octets = frame.octets[:16] + mended(packet)
        frame.time_ns += int(start_s * 1_000_000_000)
    return frames


@pytest.mark.compiled
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("shown", [(INCOMING, OUTGOING), (INCOMING,), (OUTGOING,)])
@pytest.mark.parametrize("start_s", [0.003, 0.012, 0.015, 0.021, 0.035, 0.072, 0.155])
def test_two_flows_of_a_port_to_one_server(
    start_s: float, shown: tuple[int, ...], family: int
) -> None:
    """One to a service, and one to the pod behind it, which gets another port.

    The tuple of one behind the translation is that of the other before it.
    """
    service = routed(talk_of(family), Translation(destination=POD))
    direct = routed(talk_of(family, later=1), Translation(source=(None, 31_234)))
    frames = service + readdressed(direct, family, start_s - 2.0)
    frames = sorted(frames, key=lambda frame: frame.time_ns)
    replayer, found = replayed([frame for frame in frames if frame.octets[1] in shown])
    assert found == []
    assert (replayer.table.created, replayer.translations) == (2, 2)


@pytest.mark.parametrize("side", [INCOMING, OUTGOING])
def test_the_next_connection_of_a_port_leaves_with_another(side: int) -> None:
    """The answers to both have one tuple where they leave."""
    first = one_sided(routed(talk_of(), Translation(source=ROUTER_PORT)), side)
    second = one_sided(routed(talk_of(later=1), Translation(source=("10.0.0.9", 31_235))), side)
    replayer, found = replayed(first + second)
    assert found == []
    assert (replayer.table.created, replayer.translations) == (2, 2)


def test_two_answers_with_one_tuple_are_of_one_flow() -> None:
    """Unless the first flow is about to end: no two answers leave with one tuple."""
    first = one_sided(routed(talk_of(), Translation(source=ROUTER_PORT)), OUTGOING)[:12]
    again = one_sided(routed(talk_of(later=1), Translation(source=("10.0.0.9", 31_235))), OUTGOING)
    replayer, _ = replayed(first + again[:2])
    assert replayer.translations == 1


def one_sided(frames: list[Frame], kind: int) -> list[Frame]:
    """Received packets alone, or sent ones."""
    return [frame for frame in frames if frame.octets[1] == kind]


@pytest.mark.compiled
@pytest.mark.parametrize("side", [INCOMING, OUTGOING])
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_both_halves_of_a_refused_connection(kind: str, family: int, side: int) -> None:
    """Only the number of the SYN joins them; its sender may try again with the same one."""
    talk = Conversation(client_isn=ISNS["client_isn"], server_isn=0, family=family)
    for _ in range(3):
        talk.client("S", 0, win=64240, options=SYN_OPTIONS)
        talk.server("RA", 0, 1, win=0)
        talk.now += 0.5
    replayer, found = replayed(one_sided(routed(talk, KINDS[kind]), side))
    assert found == []
    assert (replayer.table.created, replayer.translations) == (3, 3)


@pytest.mark.compiled
@pytest.mark.parametrize("side", [INCOMING, OUTGOING])
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_both_halves_from_the_middle_of_a_flow(kind: str, family: int, side: int) -> None:
    """A capture of one direction of an interface: no SYN joins its halves, their numbers do."""
    frames = one_sided(routed(talk_of(family), KINDS[kind]), side)[4:]
    replayer, found = replayed(frames)
    assert found == []
    assert (replayer.table.created, replayer.translations) == (1, 1)
    assert len(replayer.streams.began_before) == 1
    assert replayer.streams.one_way() == 0
    (stream,) = replayer.streams.began_before
    assert stream.one.packets + stream.other.packets >= len(frames) - 2


def short_talk() -> Conversation:
    """One request and one answer, in which few segments have new numbers."""
    talk = Conversation(**ISNS)
    talk.open()
    talk.client("PA", 1, 1, length=90)
    talk.server("A", 1, 91)
    talk.server("PA", 1, 91, length=400)
    talk.client("A", 91, 401)
    talk.client("RA", 91, 401)
    return talk


@pytest.mark.compiled
@pytest.mark.parametrize("side", [INCOMING, OUTGOING])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("talk", [talk_of(), short_talk()], ids=["long", "short"])
def test_any_one_frame_that_a_capture_of_one_side_lost(
    talk: Conversation, kind: str, side: int
) -> None:
    """Without the SYN or its answer nothing joins the halves until their numbers do."""
    frames = one_sided(routed(talk, KINDS[kind]), side)
    for place in range(len(frames)):
        _, found = replayed(frames[:place] + frames[place + 1 :])
        assert found or place > 1
        assert [one for one in found if one.doubted is None] == [], place


@pytest.mark.parametrize("kind", ["dnat", "dnat of both"])
def test_one_half_of_a_translated_flow(kind: str) -> None:
    """A host that sees one end alone calls its segments INVALID: no frame is missing."""
    frames = one_sided(routed(talk_of(), KINDS[kind]), INCOMING)
    client = frames[0].octets[16:][12:16]
    _, found = replayed([one for one in frames if one.octets[28:32] == client])
    assert found
    assert [one for one in found if one.doubted is not None] == []


def test_half_of_an_entry_that_ended() -> None:
    """An RST ended the half of a client whose SYN+ACK is missing; the other half goes on."""
    talk = talk_of()
    frames = one_sided(routed(talk, KINDS["dnat of both"]), INCOMING)
    talk.client("R", 1)
    reset = one_sided(routed(talk, KINDS["dnat of both"]), INCOMING)[-1]
    for place in range(4, len(frames)):
        _, found = replayed([frames[0], *frames[2:place], reset, *frames[place:]])
        assert [one for one in found if one.doubted is None] == [], place


@pytest.mark.compiled
@pytest.mark.parametrize("bulk", [False, True])
def test_halves_of_flows_that_are_mixed(bulk: bool) -> None:
    """Each half is joined with its own, also if only one end sends."""
    halves: list[Frame] = []
    for number in range(10):
        talk = Conversation(
            client_isn=0x9123_4567 + 7919 * number,
            server_isn=0xA234_5678 + 104_729 * number,
            sport=40_000 + number,
        )
        talk.now += number * 0.001
        sent = 1
        for _ in range(30):
            for _ in range(2):
                talk.server("A", sent, 1, length=1000)
                sent += 1000
            talk.client("A", 1, sent)
            if not bulk:
                talk.isns = (talk.isns[0] + 10, talk.isns[1])
        halves += one_sided(routed(talk, KINDS["dnat of both"]), INCOMING)
    halves.sort(key=lambda frame: frame.time_ns)
    replayer, found = replayed(halves)
    assert found == []
    assert (replayer.table.created, replayer.translations) == (10, 10)
    # On a link on which most packets take the shortcut, those of one half do not yet.
    for frame in halves:
        frame.octets = bytes(12) + frame.octets[14:]
        frame.linktype = ETHERNET
    replayer = Replayer(ReplaySettings())
    replayer.copies = Copies(searched=0)
    listing = replayer.streams.listing = Listing()
    assert [*replayer.replay(renumbered(halves)), *replayer.finish()] == []
    assert (replayer.table.created, replayer.translations) == (10, 10)
    assert len(listing.streams) == 10


def test_half_whose_entry_an_rst_has_ended() -> None:
    """The answers to its last segments come after the RST."""
    talk = Conversation(client_isn=ISNS["client_isn"], server_isn=ISNS["server_isn"])
    talk.client("PA", 1, 1, length=90)
    talk.server("A", 1, 91)
    talk.client("PA", 91, 1, length=90)
    talk.client("R", 181)
    talk.server("A", 1, 181)
    talk.client("PA", 181, 1, length=90)
    talk.server("A", 1, 271)
    replayer, found = replayed(one_sided(routed(talk, KINDS["dnat of both"]), INCOMING))
    assert found == []
    assert replayer.translations == 1
    (stream,) = replayer.streams.began_before
    assert (stream.one.packets, stream.other.packets) == (4, 2)


def test_rst_of_an_earlier_connection_whose_frames_are_swapped() -> None:
    """It reads as a translation the other way round, which the next segments contradict."""
    talk = Conversation(client_isn=ISNS["client_isn"], server_isn=ISNS["server_isn"])
    talk.server("RA", 5_000, 6_000, win=0)
    talk.server("PA", 100_000, 90_000, length=1000)
    talk.client("A", 90_000, 101_000)
    talk.server("PA", 101_000, 90_000, length=1000)
    talk.client("A", 90_000, 102_000)
    frames = routed(talk, Translation(source=ROUTER, destination=POD))
    _, found = replayed([frames[place] for place in (1, 0, 3, 5, 6, 7, 8)])
    assert [one for one in found if one.doubted is None] == []


def test_halves_that_more_than_one_flow_may_have() -> None:
    """Two directions await the same answer: nothing is proven, and both stay one way only."""
    frames: list[Frame] = []
    for port in (40_000, 40_001):
        talk = talk_of()
        talk.sport = port
        for frame in one_sided(routed(talk, KINDS["dnat of both"]), INCOMING)[5:]:
            octets = bytearray(frame.octets)
            at = 16 + (20 if octets[36] << 8 | octets[37] != 8080 else 22)
            octets[at : at + 2] = port.to_bytes(2, "big")
            whole = bytes(octets[:16]) + mended(IP(octets[16:]))
            frames.append(Frame(0, frame.time_ns, SLL, len(whole), whole, 0))
    client = [frame for frame in frames if frame.octets[38:40] == b"\0\x50"]
    server = [frame for frame in frames if frame.octets[38:40] != b"\0\x50"]
    replayer, _ = replayed(client + server)
    assert (replayer.table.created, replayer.translations) == (4, 0)


@pytest.mark.parametrize("kind", ["dnat", "dnat of both", "both ends"])
@pytest.mark.parametrize("begins", [0, 9])
def test_stray_before_a_translation(kind: str, begins: int) -> None:
    """A packet far outside its window leaves untranslated, and is judged by the translation."""
    talk = talk_of()
    del talk.frames[-3:]
    frames = routed(talk, KINDS[kind])
    talk.server("PA", 30_000_000, 541, length=40)
    stray = routed(talk, KINDS[kind])[-2]
    packet = IP(stray.octets[16:])
    packet.ttl -= 1
    left = cooked(mended(packet), OUTGOING)
    frames += [stray, Frame(0, stray.time_ns + 20_000, SLL, len(left), left, 0)]
    talk.server("PA", 7751, 541, length=40)
    talk.client("PA", 541, 7791, length=10)
    frames += routed(talk, KINDS[kind])[-4:]
    replayer, found = replayed(frames[begins:])
    assert replayer.translations == 1
    if begins:
        (candidate,) = outside(replayer.streams.began_before)
        assert candidate.frame == len(frames) - 5 - begins
        assert found == []
        return
    (judged,) = found
    assert judged.finding is not None
    assert judged.finding.reason is Reason.SEQ_OVER
    assert judged.doubted is None
    assert judged.decision is not None
    assert judged.decision.rule == "translated"


@pytest.mark.parametrize("first", ["outer", "inner"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_captures_of_one_host_that_begin_apart(kind: str, first: str) -> None:
    """One file a side, one of which begins later, in the middle of the flow."""
    frames = routed(talk_of(), KINDS[kind])
    sides: list[Frame] = []
    for place, frame in enumerate(frames):
        packet = IP(frame.octets[16:])
        back = packet[TCP].sport in {80, 8080}
        outer = (frame.octets[1] == INCOMING) is not back
        source = 0 if outer else 1
        late = (first == "outer") is (source == 1)
        if late and place < 12:
            continue
        octets = frame.octets[16:]
        sides.append(Frame(0, frame.time_ns, 101, len(octets), octets, source))
    replayer = Replayer(ReplaySettings(), default_policy())
    numbered = renumbered(sides)
    found = [*replayer.replay(numbered), *replayer.finish()]
    assert found == []
    assert (replayer.table.created, replayer.translations) == (1, 1)


def test_scan_of_many_hosts_is_no_translation() -> None:
    """Equal numbers, another target each, through a host that shows each packet twice."""
    frames: list[Frame] = []
    for host in range(1, 60):
        probe = IP(src="10.0.0.1", dst=f"10.0.1.{host}", id=54321) / TCP(
            sport=50_000, dport=80, flags="S", seq=77, window=1024
        )
        for kind, hop in ((INCOMING, 64), (OUTGOING, 63)):
            probe.ttl = hop
            octets = cooked(mended(probe), kind)
            frames.append(Frame(0, 10**18 + host * 10**6, SLL, len(octets), octets, 0))
    replayer, _ = replayed(frames)
    assert replayer.table.created == 59
    assert replayer.translations == 0


# By the end that is damaged: an octet of it in the packet.
ENDS = {"source": 14, "destination": 17, "source port": 21, "destination port": 22}


def harmed(octets: bytes, at: int, *, mends: bool) -> bytes:
    """A packet with another bit at an octet, and with the checksums that fit before or behind."""
    changed = bytearray(octets)
    changed[at] ^= 8
    return mended(IP(changed)) if mends else bytes(changed)


@pytest.mark.compiled
@pytest.mark.parametrize("mends", [True, False])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("begins", [0, 5])
def test_a_damaged_address_is_no_translation(begins: int, end: str, mends: bool) -> None:
    """The flow continues with both of its tuples, whichever of its packets is damaged."""
    frames = talk_of().frames[begins:]
    for place, frame in enumerate(frames):
        octets = harmed(frame.octets, ENDS[end], mends=mends)
        other = Frame(0, frame.time_ns, frame.linktype, len(octets), octets, 0)
        replayer, _ = replayed([*frames[:place], other, *frames[place + 1 :]])
        assert replayer.translations == 0, place
        replayer, _ = replayed([*frames[:place], other, *frames[place:]])
        assert replayer.translations == 0, place


@pytest.mark.compiled
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("pair", [False, True])
def test_damaged_addresses_of_a_routed_flow_are_no_translation(end: str, pair: bool) -> None:
    """A wrong checksum proves nothing, be it of one packet or of an answer and its answer."""
    frames = routed(talk_of(), Translation())
    for place in range(4, len(frames) - 1):
        changed = list(frames)
        if max(frames[place].wire_len, frames[place + 1].wire_len) > 1500:
            continue  # the checksum of a packet that was merged says nothing
        for at in (place, place + 1)[: 1 + pair]:
            octets = frames[at].octets[:16] + harmed(frames[at].octets[16:], ENDS[end], mends=False)
            changed[at] = Frame(0, frames[at].time_ns, SLL, len(octets), octets, 0)
        replayer, _ = replayed(changed)
        assert replayer.translations == 0, place


def test_packets_with_other_hop_limits_are_no_translation() -> None:
    """A packet is forwarded a few times within a host, not many."""
    frames = routed(talk_of(), KINDS["dnat of both"])
    for frame in frames:
        packet = IP(frame.octets[16:])
        if frame.octets[1] == OUTGOING:
            packet.ttl -= 30
        frame.octets = frame.octets[:16] + mended(packet)
    replayer, _ = replayed(frames)
    assert replayer.copies.copies == 0


@pytest.mark.parametrize("sides", ["both", "inner"])
def test_whatif_calls_no_healthy_policy_a_failure(
    sides: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stray that the client resets: dropped where the file shows the translation."""
    talk = talk_of()
    del talk.frames[-3:]
    talk.server("PA", 30_000_000, 541, length=40)
    talk.client("R", 541)
    frames = routed(talk, KINDS["dnat of both"])
    if sides == "inner":
        pod = inet_aton("10.0.0.8")
        frames = [one for one in frames if pod in (one.octets[28:32], one.octets[32:36])]
    records = [(0, number, frame.octets) for number, frame in enumerate(frames)]
    path = tmp_path / "sides.pcap"
    path.write_bytes(captures.pcap(records, linktype=SLL))
    words = ["whatif", str(path), "--policy", "preset:default"]
    assert main([*words, "--format", "json"]) == 0
    (policy,) = json.loads(capsys.readouterr().out)["policies"]
    assert policy["false_positives"]["packets"] == policy["false_negatives"]["packets"] == 0
    assert policy["if_translated"] == (sides == "inner")
    assert policy["by_rule"] == ({"translated": 1} if sides == "both" else {"window": 1})
    assert main(words) == 0
    text = capsys.readouterr().out
    for words_ in ("judged as untranslated: --assume-nat", "drop it if its flow is translated"):
        assert (words_ in text) is (sides == "inner")
    if sides == "both":
        return
    # A policy that drops it in no case has no such excuse.
    assert main(["whatif", str(path), "--policy", "preset:observe", "--format", "json"]) == 0
    (policy,) = json.loads(capsys.readouterr().out)["policies"]
    assert (policy["false_negatives"]["packets"], policy["if_translated"]) == (1, 0)
