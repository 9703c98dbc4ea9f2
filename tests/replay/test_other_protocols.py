# SPDX-License-Identifier: MIT
"""Captures of SCTP, GRE and broken IPv6 headers."""

from pathlib import Path

import orjson
import pytest

from nfq_guard.capture.frame import Frame
from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.flow import PROTO_GRE
from nfq_guard.replay.checksums import ChecksumMode
from nfq_guard.replay.doubt import Doubted
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.packets import DROPPED_BEFORE
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.stream import Doubt
from nfq_guard.replay.words import gist
from nfq_guard.wire.ip import decode
from tests.support import captures
from tests.support.packets import A4, A6, B4, B6, error, icmp, ip, udp
from tests.support.sctp import chunk, init, sctp

_RAW = 101
_PUBLIC = bytes((198, 51, 100, 1))


def replayed(
    *packets: bytes, checksums: ChecksumMode = ChecksumMode.AUTO, capacity: int = 1000
) -> list[Outcome]:
    """All frames, in a capture of packets a second apart."""
    settings = ReplaySettings(every=True, checksums=checksums, capacity=capacity)
    replayer = Replayer(settings)
    frames = [
        Frame(number, number * 1_000_000_000, _RAW, len(octets), octets, 0)
        for number, octets in enumerate(packets, 1)
    ]
    return [*replayer.replay(frames), *replayer.finish()]


def association(public: bytes = A4) -> list[bytes]:
    """A handshake; its answers have the address `public` of the end that opened it."""
    return [
        sctp(A4, B4, 5000, 2905, 0, init(1, 7)),
        sctp(B4, public, 2905, 5000, 7, init(2, 9)),
        sctp(A4, B4, 5000, 2905, 9, chunk(10, b"cookie")),
        sctp(B4, public, 2905, 5000, 7, chunk(11)),
    ]


def test_an_association() -> None:
    """Only the packet of another association is INVALID, and is named as such."""
    stray = sctp(B4, A4, 2905, 5000, 8, chunk(0, bytes(20)), chunk(3, bytes(12)))
    outcomes = replayed(*association(), stray, sctp(A4, B4, 5000, 2905, 9, chunk(0, bytes(20))))
    found = [None if one.finding is None else one.finding.reason for one in outcomes]
    assert found == [None, None, None, None, Reason.BAD_TAG, None]
    assert outcomes[4].packet is not None
    assert gist(outcomes[4].packet) == "sctp tag 0x00000008 data, sack"
    assert outcomes[4].doubted == Doubted(kind=Doubt.UNSEEN_HANDSHAKE), "its end fell silent"


def data(tag: int, *, back: bool = False) -> bytes:
    """A packet of data of the association; `back` from the end that answered."""
    if back:
        return sctp(B4, A4, 2905, 5000, tag, chunk(0, bytes(20)))
    return sctp(A4, B4, 5000, 2905, tag, chunk(0, bytes(20)))


def found_in(*packets: bytes) -> list[tuple[int, Reason, bool]]:
    """The findings, each with its position and whether it is certain."""
    return [
        (place, one.finding.reason, one.doubted is None)
        for place, one in enumerate(replayed(*packets))
        if one.finding is not None
    ]


def test_a_packet_of_another_association() -> None:
    """Its end continues with the tag of this one, so no handshake is missing."""
    assert found_in(*association(), data(8, back=True), data(7, back=True)) == [
        (4, Reason.BAD_TAG, True)
    ]
    # The end goes on with the new tag, as behind a handshake that is not in the file.
    assert found_in(*association(), data(8, back=True), data(9), data(8, back=True)) == [
        (4, Reason.BAD_TAG, False),
        (6, Reason.BAD_TAG, False),
    ]


def restarted() -> list[bytes]:
    """The second handshake between the ports."""
    return [
        sctp(A4, B4, 5000, 2905, 0, init(1, 17)),
        sctp(B4, A4, 2905, 5000, 17, init(2, 19)),
        sctp(A4, B4, 5000, 2905, 19, chunk(10, b"cookie")),
        sctp(B4, A4, 2905, 5000, 17, chunk(11)),
    ]


@pytest.mark.parametrize("missing", range(4))
def test_an_association_anew_of_which_a_packet_is_missing(missing: int) -> None:
    again = restarted()
    del again[missing]
    rest = [data(19), data(17, back=True)] * 3
    found = found_in(*association(), data(9), data(7, back=True), *again, *rest)
    assert (missing < 2) == bool(found)
    assert not any(stands for _, _, stands in found)


def test_a_late_packet_of_the_association_before() -> None:
    """Within the distance over which a capture may have frames out of order, or far behind."""
    first, second = association(), [*restarted(), *[data(19)] * 8]
    assert found_in(*first, *second[:4], data(9), *second[4:]) == [(8, Reason.BAD_TAG, False)]
    assert found_in(*first, *second, data(9), data(19)) == [(16, Reason.BAD_TAG, True)]


def test_an_init_with_a_tag() -> None:
    """No missing packet explains it."""
    wrong = sctp(A4, B4, 5000, 2905, 3, init(1, 7))
    assert found_in(*association(), wrong) == [(4, Reason.BAD_TAG, True)]
    assert found_in(wrong) == [(0, Reason.BAD_TAG, True)]
    assert found_in(*association()[1:], wrong)[-1] == (3, Reason.BAD_TAG, True)


def test_an_init_ack_of_another_init() -> None:
    """It has the right tag, and announces one that its end never uses."""
    other = sctp(B4, A4, 2905, 5000, 7, init(2, 23))
    assert found_in(*association(), other, data(9)) == [(4, Reason.BAD_TAG, True)]
    assert found_in(*association(), other) == [(4, Reason.BAD_TAG, False)]


def test_many_tags_of_one_end() -> None:
    """The first ones are forgotten, and what depended on them is in doubt."""
    stray = data(8, back=True)
    packets = [*association(), stray, data(7, back=True)]
    for tag in range(100, 120):
        packets += [
            sctp(A4, B4, 5000, 2905, 0, init(1, tag)),
            sctp(B4, A4, 2905, 5000, tag, init(2, 9)),
            data(tag, back=True),
        ]
    assert found_in(*packets[:30])[0] == (4, Reason.BAD_TAG, True)
    assert found_in(*packets)[0] == (4, Reason.BAD_TAG, False)


def test_the_flow_of_a_stray_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = [*association(), sctp(B4, A4, 2905, 5000, 8, chunk(0, bytes(20)))]
    path = tmp_path / "stray.pcap"
    path.write_bytes(captures.pcap([(1, 0, octets) for octets in packets], linktype=_RAW))
    assert main(["explain", str(path), "5"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sctp, ESTABLISHED, tag 0x00000009 in the original direction, tag 0x00000007" in text
    assert "receiver would discard it (RFC 9260 8.5)" in text


@pytest.mark.parametrize("kept", [slice(0, 0), slice(2, 4)])
def test_an_association_that_began_before(kept: slice) -> None:
    """The kernel has its entry; the file does not show why it would have none."""
    data = sctp(A4, B4, 5000, 2905, 9, chunk(0, bytes(20)))
    *_, last = replayed(*association()[kept], data)
    assert last.finding is not None
    assert last.finding.reason is Reason.NO_ENTRY
    assert last.doubted == Doubted(kind=Doubt.UNSEEN_HANDSHAKE)


@pytest.mark.parametrize("order", [(0, 2, 3), (1, 0, 2, 3)], ids=["lost", "swapped"])
def test_an_association_whose_answer_is_not_where_it_was(order: tuple[int, ...]) -> None:
    """Conntrack has no tag of an INIT ACK that is lost, or listed before its INIT."""
    packets = association()
    data = [sctp(A4, B4, 5000, 2905, 9, chunk(0, bytes(20)))] * 2
    outcomes = replayed(*[packets[place] for place in order], *data)
    found = [one for one in outcomes if one.finding is not None]
    assert found
    assert {one.doubted for one in found} == {Doubted(kind=Doubt.UNSEEN_HANDSHAKE)}


def test_one_end_of_an_association() -> None:
    """A host that sees no answers calls packets of the association INVALID."""
    packets = association()
    data = sctp(A4, B4, 5000, 2905, 9, chunk(0, bytes(20)))
    found = [one for one in replayed(packets[0], data, data) if one.finding is not None]
    assert found
    assert {one.doubted for one in found} == {None}
    one, *_ = [one for one in replayed(packets[0], data) if one.finding is not None]
    assert one.doubted == Doubted(kind=Doubt.UNSEEN_HANDSHAKE), "the answer alone may be missing"


def test_an_association_whose_entry_has_expired() -> None:
    """Its beginning is in the file, so the finding stands; unless too many began since."""
    packets = [*association(), *[udp(A4, B4, 1, 2)] * 220]
    data = sctp(A4, B4, 5000, 2905, 9, chunk(0, bytes(20)))
    *_, last = replayed(*packets, data)
    assert last.finding is not None
    assert (last.finding.reason, last.doubted) == (Reason.NO_ENTRY, None)
    assert found_in(*packets, sctp(A4, B4, 5000, 2905, 19, chunk(0, bytes(20)))) == [
        (len(packets), Reason.NO_ENTRY, False)
    ], "of a later one, whose handshake is not in the file"
    others = [sctp(A4, B4, 5000, port, 0, init(1, 7)) for port in range(3)]
    *_, last = replayed(*packets, *others, data, capacity=2)
    assert last.doubted == Doubted(kind=Doubt.UNSEEN_HANDSHAKE)


def test_a_checksum_left_to_the_nic() -> None:
    """It is 0 in a capture at the sender."""
    unfinished = [octets[:28] + bytes(4) + octets[32:] for octets in association()]
    assert all(one.finding is None for one in replayed(*unfinished))
    verified = replayed(*unfinished, checksums=ChecksumMode.VERIFY)
    assert {one.finding.reason for one in verified if one.finding} == {Reason.BAD_CHECKSUM}


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (sctp(A4, B4, 1, 2, 0), "sctp tag 0x00000000 without a chunk"),
        (
            sctp(A4, B4, 1, 2, 3, *(chunk(kind) for kind in (0, 0, 3, 0))),
            "sctp tag 0x00000003 data, data, sack, ...",
        ),
        (ip(A4, B4, PROTO_GRE, b"\x30\1\x88\x0b\0\4\0\7"), "gre call 7"),
        (ip(A4, B4, PROTO_GRE, bytes(8)), "gre"),
    ],
)
def test_gist(octets: bytes, said: str) -> None:
    assert gist(decode(octets)) == said


@pytest.mark.parametrize(
    "octets",
    [
        ip(b"\xff\2" + A6[2:], B6, 17, udp(A6, B6, 1, 2)[40:]),
        ip(A6, B6, 0, b"\x11\0\xde\4abcd" + udp(A6, B6, 1, 2)[40:]),
        ip(A6, B6, 0, b"\x11\5\1\4\0\0\0\0"),
    ],
)
def test_ipv6_headers_that_come_to_no_rule(octets: bytes) -> None:
    (outcome,) = replayed(octets)
    assert (outcome.ctstate, outcome.absent) == (None, DROPPED_BEFORE)


def test_an_ipv6_header_that_states_no_payload() -> None:
    """To Linux nothing after it is part of the packet."""
    whole = udp(A6, B6, 1, 2)
    (outcome,) = replayed(whole[:4] + bytes(2) + whole[6:])
    assert outcome.finding is not None
    assert (outcome.finding.reason, outcome.finding.detail) == (
        Reason.MALFORMED, "UDP header cut short",
    )  # fmt: skip


def answered_ping(number: int) -> list[bytes]:
    rest = bytes((number, 7, 0, 1)) + b"ping"
    return [icmp(A4, B4, 8, rest), icmp(B4, A4, 0, rest)]


def test_an_answer_whose_request_is_missing() -> None:
    """One frame that the capture lost explains each; not if there are more than it may lose."""
    pings = [answered_ping(number) for number in range(40)]
    some = [packet for number, ping in enumerate(pings) for packet in ping[number % 8 == 0 :]]
    assert found_in(*some) != []
    assert not any(stands for _, _, stands in found_in(*some))
    answers = [answer for _, answer in pings]
    assert found_in(*answers) == [(place, Reason.NO_ENTRY, True) for place in range(40)]


@pytest.mark.parametrize("hidden", ["source", "destination"])
def test_answers_to_requests_with_another_tuple(hidden: str) -> None:
    """Arriving packets of a host that translates; a reply to no request stays a fact."""
    packets: list[bytes] = []
    for number in range(12):
        rest = bytes((0, 7, 0, number)) + b"ping"
        source = hidden == "source"
        packets.append(icmp(A4, B4 if source else _PUBLIC, 8, rest))
        packets.append(icmp(B4, _PUBLIC if source else A4, 0, rest))
    found = found_in(*packets)
    assert [place for place, _, _ in found] == list(range(1, 24, 2))
    assert not any(stands for _, _, stands in found)
    strange = [icmp(B4, _PUBLIC, 0, bytes((0, 7, 1, number)) + b"ping") for number in range(12)]
    assert [stands for _, _, stands in found_in(*packets, *strange)] == [False] * 12 + [True] * 12
    late = [packets[0], *[udp(A4, B4, 1, 2)] * 40, packets[1]]
    (_, _, stands) = found_in(*late, *strange)[0]
    assert stands, "the entry of the request has expired"


def test_requests_like_others_that_were_answered_twice() -> None:
    packets: list[bytes] = []
    for public in (A4, _PUBLIC):
        for number in range(12):
            rest = bytes((0, 7, 0, number)) + b"ping"
            packets += [icmp(A4, B4, 8, rest), *[icmp(B4, public, 0, rest)] * 2]
    found = found_in(*packets)
    assert len(found) == 24
    assert not any(stands for _, _, stands in found)


@pytest.mark.parametrize("missing", [0, 1, 5])
def test_an_association_with_two_tuples(missing: int) -> None:
    """Arriving packets of a host that translates its client."""
    packets = [*association(_PUBLIC), data(9), data(9)]
    found = found_in(*packets[:missing], *packets[missing + 1 :])
    assert len(found) > 2
    assert not any(stands for _, _, stands in found)


def test_an_answer_that_came_too_late() -> None:
    """Its request is in the file, and the entry has expired."""
    request, answer = answered_ping(1)
    packets = [request, *[udp(A4, B4, 1, 2)] * 40, answer]
    assert found_in(*packets) == [(41, Reason.NO_ENTRY, True)]


def test_an_error_about_a_packet_that_is_missing() -> None:
    quoted = udp(A4, B4, 5, 6)
    assert found_in(error(B4, A4, 3, quoted, 3)) == [(0, Reason.ICMP_UNRELATED, False)]
    assert found_in(error(B4, A4, 3, b"E", 3)) == [(0, Reason.ICMP_UNRELATED, True)]


def test_errors_of_a_capture_of_icmp_alone() -> None:
    """However many, they quote packets that the filter keeps out of the file.

    Nor do they make facts of other findings.
    """
    errors = [error(B4, A4, 3, udp(A4, B4, port, 6), 3) for port in range(40)]
    _, answer = answered_ping(1)
    assert not any(stands for _, _, stands in found_in(*errors, answer))


def test_a_message_that_answers_none() -> None:
    """Conntrack has no entry for an advertisement of a router, whatever came before."""
    assert found_in(icmp(A4, B4, 9, bytes(12))) == [(0, Reason.NO_ENTRY, True)]


@pytest.mark.parametrize(
    ("proto", "name", "said"),
    [
        (33, "DCCP", "kernels 5.10 to 6.12 call those that do not fit a connection's states"),
        (136, "UDP-Lite", "kernels 5.10 to 6.18 call even those with a correct checksum INVALID"),
    ],
)
def test_a_protocol_that_some_kernels_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], proto: int, name: str, said: str
) -> None:
    """The replay has no tracker of it, which it says."""
    file = tmp_path / "others.pcap"
    packets = [ip(A4, B4, proto, bytes(20)), ip(A6, B6, proto, bytes(20)), udp(A4, B4, 1, 2)]
    file.write_bytes(captures.pcap([(0, 0, octets) for octets in packets], linktype=_RAW))
    assert main(["replay", str(file), "--summary"]) == 0
    assert f"  2 packets of {name}: {said}" in capsys.readouterr().out
    assert main(["replay", str(file), "--summary", "--format", "json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["unmodelled"] == {name: 2}
    assert main(["explain", str(file), "1"]) == 0
    assert f"NEW. It is a packet of {name}: " in " ".join(capsys.readouterr().out.split())
