# SPDX-License-Identifier: MIT
"""Findings that the capture may have caused are in doubt; facts are not."""

import json
import random
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path

import pytest

from nfq_guard.capture.frame import Frame
from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.replay.frame_record import FrameRecord
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.stream import Doubt
from nfq_guard.wire.packet import RST, SYN, Packet, Segment
from tests.support import captures
from tests.support.conversation import RAW, SYN_OPTIONS, Conversation
from tests.support.healthy import displaced, download, renumbered, swapped, traffic, without
from tests.support.healthy_others import MAKERS, others


def invalid(frames: list[Frame], *, strict: bool = False) -> list[Outcome]:
    replayer = Replayer(ReplaySettings(strict=strict))
    return [*replayer.replay(frames), *replayer.finish()]


def facts(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.doubted is None]


@pytest.mark.compiled
@pytest.mark.parametrize("seed", range(5))
def test_healthy_traffic(seed: int) -> None:
    assert invalid(traffic(seed)) == []


def test_the_record_of_a_frame_names_every_doubt() -> None:
    text = getdoc(FrameRecord)
    assert text is not None
    assert [doubt for doubt in Doubt if f"`{doubt}`" not in text] == []


def set_forward(frames: list[Frame], place: int, by_s: int) -> list[Frame]:
    """The clock was set forward before the frame at `place`."""
    for frame in frames[place:]:
        frame.time_ns += by_s * 1_000_000_000
    return frames


@pytest.mark.parametrize("by_s", [300, 3600, 86_400])
@pytest.mark.parametrize("place", range(1, 12))
def test_a_clock_that_is_set_forward(place: int, by_s: int) -> None:
    """An answer to a segment that TCP would have repeated in that time."""
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=100)
    talk.server("A", 1, 101)
    talk.server("PA", 1, 101, length=50)
    talk.client("A", 101, 51)
    talk.client("FA", 101, 51)
    talk.server("FA", 51, 102)
    talk.client("A", 102, 52)
    outcomes = invalid(set_forward(talk.frames, place, by_s))
    assert facts(outcomes) == []
    assert bool(outcomes) == (place in {1, 8})
    assert {one.doubted.kind for one in outcomes if one.doubted} <= {Doubt.SILENCE}


def test_a_connection_that_is_refused_behind_a_clock_that_is_set_forward() -> None:
    talk = Conversation()
    talk.client("S", 0, options=SYN_OPTIONS)
    talk.server("RA", 0, 1)
    (refused,) = invalid(set_forward(talk.frames, 1, 3600))
    assert refused.doubted is not None
    assert refused.doubted.kind is Doubt.SILENCE


def test_the_end_of_a_flow_that_was_idle() -> None:
    """Nothing was waiting for an answer, so the silence is real, and the entry has expired."""
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=100)
    talk.server("A", 1, 101)
    talk.server("FA", 1, 101)
    (late,) = facts(invalid(set_forward(talk.frames, 5, 6 * 86_400)))
    assert late.finding is not None
    assert late.finding.reason is Reason.NO_ENTRY


KINDS = [(kind,) for kind in MAKERS] + [()]
"""Each kind of traffic other than TCP transfers alone, and all together."""


@pytest.mark.compiled
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_healthy_traffic_of_other_kinds(kinds: tuple[str, ...], seed: int) -> None:
    assert invalid(others(seed, *kinds)) == []


@pytest.mark.compiled
@pytest.mark.parametrize("kinds", KINDS)
def test_lost_frames_of_other_kinds(kinds: tuple[str, ...]) -> None:
    found = [
        outcome
        for seed in range(6)
        for share in (0.005, 0.02, 0.05, 0.1)
        for outcome in invalid(without(others(seed, *kinds), share, seed))
    ]
    assert found or kinds == ("gre",), "any packet of GRE may be the first"
    assert facts(found) == []


@pytest.mark.compiled
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("keeps_times", [True, False])
def test_swapped_neighbours_of_other_kinds(kinds: tuple[str, ...], keeps_times: bool) -> None:
    found = [
        outcome
        for seed in range(8)
        for share in (0.01, 0.05, 0.2)
        for outcome in invalid(swapped(others(seed, *kinds), share, seed, keeps_times=keeps_times))
    ]
    assert found or kinds == ("gre",), "any packet of GRE may be the first"
    assert facts(found) == []


@pytest.mark.compiled
@pytest.mark.parametrize("share", [0.005, 0.02, 0.05, 0.1])
def test_lost_frames(share: float) -> None:
    """Every finding that is due to frames that the capture lost is in doubt."""
    found = [
        outcome for seed in range(12) for outcome in invalid(without(traffic(seed), share, seed))
    ]
    assert len(found) > 20
    assert facts(found) == []


@pytest.mark.compiled
@pytest.mark.parametrize("keeps_times", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_swapped_neighbours(share: float, keeps_times: bool) -> None:
    found = [
        outcome
        for seed in range(12)
        for outcome in invalid(swapped(traffic(seed), share, seed, keeps_times=keeps_times))
    ]
    assert found
    assert facts(found) == []


@pytest.mark.parametrize("most", [2, 6, 40])
def test_frames_ahead_of_their_places(most: int) -> None:
    """Times show the disorder, however many frames of the stream are between."""
    found = [
        outcome
        for seed in range(6)
        for outcome in invalid(displaced(traffic(seed, 4), 0.05, most, seed))
    ]
    assert found
    assert facts(found) == []


def test_last_acknowledgement_ahead_of_both_ends() -> None:
    """The older frame behind it does not take back what it acknowledges."""
    talk = conversation()
    talk.client("FA", 19, 1001)
    talk.server("FA", 1001, 20)
    talk.client("A", 20, 1002)
    talk.frames.insert(-2, talk.frames.pop())
    (found,) = invalid(renumbered(talk.frames))
    assert found.doubted is not None
    assert found.doubted.kind is Doubt.OUT_OF_ORDER
    for place, frame in enumerate(talk.frames):
        frame.time_ns = 1_700_000_000_000_000_000 + place
    assert len(facts(invalid(renumbered(talk.frames)))) == 1, "a receiver took back what it had"


@pytest.mark.parametrize("wait", [0.0, 20.0])
def test_frame_of_the_next_connection_ahead_of_its_syn(wait: float) -> None:
    """It is far outside the connection before it, which ended on the same ports."""
    talk = conversation()
    talk.client("FA", 19, 1001)
    talk.server("FA", 1001, 20)
    talk.client("A", 20, 1002)
    talk.isns = (50_000_000, 90_000_000)
    talk.open()
    talk.frames.insert(-2, talk.frames.pop())
    talk.frames[-3].time_ns += int(wait * 1e9)
    found = invalid(renumbered(talk.frames))
    assert [one.finding and one.finding.reason for one in found] == [Reason.SEQ_OVER]
    kinds = [one.doubted and one.doubted.kind for one in found]
    assert kinds == ([None] if wait else [Doubt.OUT_OF_ORDER]), "a clock that was set"


def test_filtered_to_opening_and_end() -> None:
    """`tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst) != 0`, a filter that many captures have."""
    kept: list[Frame] = []
    for frame in traffic(3, 30):
        flags = frame.octets[33]
        if flags & (SYN | RST | 1):
            kept.append(frame)
    found = invalid(renumbered(kept))
    assert found
    assert facts(found) == []


@pytest.mark.parametrize("total", [100_000, 320_000, 50_000_000])
@pytest.mark.parametrize("ends", ["server", "server, reset", "client", "both"])
def test_large_transfer_filtered_to_opening_and_end(ends: str, total: int) -> None:
    """The end is any number of windows ahead. It is a fact once the handshake is whole."""
    talk = Conversation()
    talk.open()
    sent = 1 + total
    if ends == "client":
        talk.client("FA", 501, sent)
    else:
        talk.server("FA", sent, 501)
    if ends == "server, reset":
        talk.client("R", 501)
    elif ends == "both":
        talk.client("FA", 501, sent + 1)
    (whole,) = invalid(talk.frames[:4])
    assert (whole.doubted is None) == (ends != "client" or total > 2 * 65160)
    del talk.frames[2]
    found = invalid(renumbered(talk.frames))
    assert found
    assert facts(found) == []


def stray(talk: Conversation) -> None:
    """A segment on a kube-proxy node, far outside the window and answered with an RST."""
    talk.server("PA", 10_000_000, 19, length=31)
    talk.client("R", 19)


def conversation() -> Conversation:
    talk = Conversation()
    talk.open()
    talk.client("PA", 1, 1, length=18)
    talk.server("A", 1, 19)
    talk.server("PA", 1, 19, length=1000)
    talk.client("A", 19, 1001)
    return talk


def answer_before_the_handshake() -> list[Frame]:
    """TCP Fast Open: data in the SYN, and an answer to it before the handshake has ended."""
    talk = Conversation()
    talk.client("S", 0, win=65000, length=100)
    talk.server("SA", 0, 101, win=65000)
    for start in range(1, 6001, 1000):
        talk.server("A", start, 101, length=1000)
    for start in range(1, 6001, 1000):
        talk.client("A", 101, start + 1000)
    talk.server("FA", 6001, 101)
    talk.client("FA", 101, 6002)
    talk.server("A", 6002, 102)
    return talk.frames


def test_answer_before_the_handshake() -> None:
    assert invalid(answer_before_the_handshake()) == []


@pytest.mark.parametrize("missing", range(1, 17))
def test_one_frame_missing_of_an_answer_before_the_handshake(missing: int) -> None:
    frames = answer_before_the_handshake()
    del frames[missing - 1]
    found = invalid(renumbered(frames))
    assert found or missing != 2
    assert facts(found) == []


@pytest.mark.parametrize("first", range(1, 16))
def test_two_frames_swapped_of_an_answer_before_the_handshake(first: int) -> None:
    frames = answer_before_the_handshake()
    frames[first - 1 : first + 1] = reversed(frames[first - 1 : first + 1])
    for number, frame in enumerate(frames):
        frame.time_ns = 1_700_000_000_000_000_000 + number
    assert facts(invalid(renumbered(frames))) == []


def test_stray_is_a_fact() -> None:
    talk = conversation()
    stray(talk)
    talk.client("A", 19, 1001)
    (found,) = invalid(talk.frames)
    assert found.finding is not None
    assert found.finding.reason is Reason.SEQ_OVER
    assert found.doubted is None


def test_stray_stays_a_fact_where_frames_are_missing() -> None:
    """The file lacks data that was acknowledged; that explains no segment 10 MB ahead."""
    talk = conversation()
    stray(talk)
    del talk.frames[5]
    found = invalid(renumbered(talk.frames))
    assert [outcome.doubted is None for outcome in found] == [False, True]


def test_wrong_acknowledgement_is_a_fact() -> None:
    """Its sender acknowledges less afterwards, which a receiver never does."""
    talk = conversation()
    talk.client("A", 19, 3001)
    for start in range(1001, 8001, 1000):
        talk.server("A", start, 19, length=1000)
        talk.client("A", 19, start + 1000)
    (found,) = invalid(talk.frames)
    assert found.finding is not None
    assert found.finding.reason is Reason.ACK_OVER
    assert found.doubted is None


def test_data_sent_again_is_a_fact() -> None:
    """Beyond the window and not taken: the receiver acknowledges the second copy, not the first."""
    talk = Conversation()
    talk.client("S", 0, win=1000)
    talk.server("SA", 0, 1, win=1000)
    talk.client("A", 1, 1, win=1000)
    talk.server("A", 1, 1, length=3500)
    talk.client("A", 1, 1001, win=1000)
    talk.server("A", 3501, 1, length=500)
    talk.client("A", 1, 3501, win=1000)
    talk.server("A", 3501, 1, length=500)
    talk.client("A", 1, 4001, win=1000)
    found = invalid(talk.frames)
    assert all(outcome.doubted is None for outcome in found if outcome.frame.number == 6)


def test_window_that_is_not_in_the_capture() -> None:
    """Data beyond the window, acknowledged as it is: a frame had offered more room."""
    talk = Conversation()
    talk.client("S", 0, win=1000)
    talk.server("SA", 0, 1, win=1000)
    talk.client("A", 1, 1, win=1000)
    for start in range(1, 4002, 500):
        talk.server("A", start, 1, length=500)
    talk.client("A", 1, 4501, win=1000)
    found = invalid(talk.frames)
    assert found
    kinds = {outcome.doubted.kind for outcome in found if outcome.doubted is not None}
    assert Doubt.UNSEEN_WINDOW in kinds
    assert facts(found) == []


def test_answer_behind_the_reset_that_answers_it() -> None:
    """The RST of a scanner answers the SYN+ACK that is listed behind it."""
    talk = Conversation()
    talk.client("S", 0)
    talk.client("R", 1)
    talk.server("SA", 0, 1)
    assert [one.doubted and one.doubted.kind for one in invalid(talk.frames)] == [
        Doubt.OUT_OF_ORDER
    ]


@pytest.mark.parametrize(("answers", "known"), [(2, False), (3, True)])
def test_answers_without_the_end_that_they_are_for(answers: int, known: bool) -> None:
    """More than one frame of an end is missing where the host does not see it."""
    talk = Conversation()
    for _ in range(answers):
        talk.server("SA", 0, 1, wait=1.0)
    found = invalid(talk.frames)
    assert [one.doubted is None for one in found] == [known] * answers
    kinds = {one.doubted.kind for one in found if one.doubted is not None}
    assert kinds <= {Doubt.UNSEEN_REQUEST}


def unanswered(segments: int) -> Conversation:
    """A sender far beyond the only window that the file shows, with no answer in it."""
    talk = Conversation()
    talk.client("S", 0, win=1000)
    talk.server("SA", 0, 1, win=1000)
    talk.client("A", 1, 1, win=1000)
    for number in range(segments):
        talk.server("A", 1 + 1000 * number, 1, length=1000)
    return talk


@pytest.mark.parametrize("segments", [100, 2500])
def test_windows_that_are_not_in_the_capture(segments: int) -> None:
    """Nothing shows that its receiver refused any of it, however much is in flight."""
    talk = unanswered(segments)
    found = invalid(talk.frames)
    assert len(found) > segments // 2
    assert facts(found) == []
    talk.client("A", 1, 1 + 1000 * segments, win=1000)
    assert facts(invalid(talk.frames)) == []


def test_segment_beyond_the_window_that_its_receiver_does_not_take() -> None:
    talk = unanswered(100)
    talk.client("A", 1, 1001, win=1000)
    assert Reason.SEQ_OVER in [
        one.finding and one.finding.reason for one in facts(invalid(talk.frames))
    ]


@pytest.mark.parametrize("ack", [5_000_001, 5_001_001, 5_003_001])
def test_jump_to_what_its_receiver_acknowledges(ack: int) -> None:
    """All before it is missing in the file, and some behind it may be."""
    talk = conversation()
    talk.server("PA", 5_000_001, 19, length=1000)
    talk.client("A", 19, ack)
    found = invalid(talk.frames)
    assert [one.doubted and one.doubted.kind for one in found] == [Doubt.UNSEEN_DATA] * 2
    talk.client("PA", 19, ack, length=10)
    talk.server("FA", ack, 29)
    replayer = Replayer(ReplaySettings())
    replayer.replay(renumbered(talk.frames[3:]))
    assert outside(replayer.streams.began_before) == []


@pytest.mark.parametrize("answers", [20, 400])
@pytest.mark.parametrize("step", [100_000, 200_000])
def test_acknowledgements_of_a_transfer_that_is_not_in_the_capture(answers: int, step: int) -> None:
    """The end of the transfer alone is, behind any number of them."""
    talk = conversation()
    for number in range(1, answers + 1):
        talk.client("A", 19, 1001 + step * number)
    if step > 2 * 502 << 7:
        talk.server("PA", 1001 + step * answers, 19, length=10)
        talk.client("A", 19, 1011 + step * answers)
    found = invalid(talk.frames)
    assert len(found) >= answers
    assert facts(found) == []


def test_late_acknowledgements_of_less_refute_nothing() -> None:
    """The stream goes on at the number that was acknowledged, so that it was right."""
    talk = conversation()
    for ack in (2001, 1001, 1001):
        talk.client("A", 19, ack)
    talk.server("PA", 2001, 19, length=500)
    talk.client("A", 19, 2501)
    found = invalid(talk.frames)
    assert found[0].frame.number == 8
    assert facts(found) == []


def test_acknowledgement_that_the_network_delayed_refutes_nothing() -> None:
    """Of less than an earlier one: it was sent before, and takes back nothing."""
    talk = conversation()
    for ack in (2001, 501):
        talk.client("A", 19, ack)
    talk.server("R", 2001)
    found = invalid(talk.frames)
    assert found[0].frame.number == 8
    assert facts(found) == []


@pytest.mark.parametrize("lost", [True, False])
def test_resets_behind_an_abort_whose_acknowledgement_is_missing(*, lost: bool) -> None:
    """An RST that repeats the number of an earlier one answers an acknowledgement of it.

    Conntrack ends the flow with the first RST if that acknowledgement passed before; else it calls
    the next RST INVALID, which has a lower number.
    """
    talk = conversation()
    talk.server("PA", 1001, 19, length=2000)
    talk.client("A", 19, 2001)
    talk.server("RA", 3001, 19)
    if not lost:
        talk.client("A", 19, 3001)
    for number in (1001, 2001, 3001):
        talk.server("R", number, win=0)
    found = invalid(talk.frames)
    assert found
    assert {outcome.finding.reason for outcome in found if outcome.finding} == {Reason.RST_OUTSIDE}
    assert len(facts(found)) == (0 if lost else len(found))


@pytest.mark.parametrize("aborts", [True, False])
@pytest.mark.parametrize("captured", [40, 60])
def test_resets_behind_an_abort_in_a_window_of_unknown_scale(
    captured: int, *, aborts: bool
) -> None:
    """Conntrack believes an abort behind the last segment only within the window."""
    talk = Conversation()
    talk.client("S", 0, win=1000, options=SYN_OPTIONS)
    talk.server("SA", 0, 1, win=65160, options=SYN_OPTIONS)
    talk.client("A", 1, 1, win=100)
    for start, length in ((1, 500), (501, 400), (2001, 1000), (3001, 1000)):
        talk.server("PA", start, 1, length=length)
    if aborts:
        talk.server("RA", 4001, 1)
    for ack in (501, 901):
        talk.client("A", 1, ack, win=100)
    talk.server("R", 501)
    for frame in talk.frames[:2]:
        frame.octets = frame.octets[:captured]
    found = invalid(talk.frames)
    assert bool(found) is not (aborts and captured == 60)
    assert (facts(found) == found) is not (aborts and captured == 40)


def test_acknowledgement_that_comes_twice_is_no_series() -> None:
    talk = conversation()
    for ack in (1001, 5_000_001, 5_000_001, 1001):
        talk.client("A", 19, ack)
    assert len(facts(invalid(talk.frames))) == 2


def test_strict_doubts_nothing() -> None:
    found = invalid(without(traffic(1), 0.05, 1), strict=True)
    assert found
    assert facts(found) == found


def test_one_direction_is_no_doubt() -> None:
    """A router on an asymmetric route sees one end alone, and calls its segments INVALID."""
    talk = conversation()
    kept = [frame for frame in talk.frames if frame.octets[12:16] == b"\x0a\0\0\1"]
    found = invalid(renumbered(kept))
    assert found
    assert facts(found) == found


def test_proof_names_bytes_and_frame() -> None:
    talk = conversation()
    del talk.frames[5]
    (found,) = invalid(renumbered(talk.frames))
    assert found.doubted is not None
    proof = found.doubted.proof
    assert proof is not None
    assert (proof.kind, proof.frame, proof.missing) == (Doubt.UNSEEN_DATA, 6, 1000)
    assert proof.start == 5001


def test_capture_reports_drops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`isb_osdrop` in the statistics at the end of the file."""
    talk = conversation()
    talk.server("A", 1001 + 100_000, 19, length=100)
    blocks = [captures.section(), captures.interface(RAW)]
    blocks += [captures.enhanced(frame.octets, frame.time_ns // 1000) for frame in talk.frames]
    path = tmp_path / "capture.pcapng"
    for drops, expected in ((0, None), (3, "capture-drops")):
        statistics = captures.statistics(0, ifdrop=1 if drops else 0, osdrop=drops)
        path.write_bytes(b"".join([*blocks, statistics]))
        assert main(["replay", str(path), "--format", "json", "--kernel", "5.15"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(row["frame"], row["reason"], row["doubt"]) for row in rows] == [
            (8, "seq-over", expected)
        ]
    assert main(["replay", str(path), "--summary", "--format", "json", "--kernel", "5.15"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["drops"], summary["reason"], summary["doubt"]) == (4, {}, {"capture-drops": 1})


def test_summary_and_whatif_count_facts_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = conversation()
    stray(talk)
    del talk.frames[5]
    path = talk.save(tmp_path / "lossy.pcap")
    assert main(["replay", path, "--summary", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["reason"] == {"seq-over": 1}
    assert summary["doubt"] == {"unseen-data": 1}
    assert main(["replay", path]) == 0
    text = capsys.readouterr().out
    assert "ack-over?" in text
    assert "not counted above: the capture lacks bytes of the flow, or may lack them" in text
    assert main(["whatif", path, "--policy", "preset:strict"]) == 0
    assert "1 more packet in doubt" in capsys.readouterr().out
    assert main(["explain", path, "6"]) == 0
    text = capsys.readouterr().out
    assert text.index("The finding is in doubt") < text.index("The packet")
    assert "the peer acknowledged bytes that are not in the capture" in " ".join(text.split())


@pytest.mark.parametrize("sender", ["client", "server"])
def test_no_byte_before_a_last_rst_is_called_acknowledged(
    sender: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = conversation()
    getattr(talk, sender)("R", 5_000_000, win=0)
    path = talk.save(tmp_path / "rst.pcap")
    assert main(["replay", path]) == 0
    text = capsys.readouterr().out
    assert "in doubt: unseen-data" in text
    assert "the capture lacks bytes of the flow, or may lack them" in text
    assert main(["explain", path, str(len(talk.frames))]) == 0
    text += capsys.readouterr().out
    assert "the RST is ahead of its stream" in text
    assert "acknowledged bytes that are not in" not in " ".join(text.split())


def test_healthy_flows_that_began_before() -> None:
    """Picked up in the middle, none of them has a segment outside its window."""
    frames = [
        frame for number in range(100) for frame in _middle(traffic(number, 1, 40000 + number))
    ]
    replayer = Replayer(ReplaySettings())
    replayer.replay(renumbered(frames))
    assert len(replayer.streams.began_before) > 50
    assert outside(replayer.streams.began_before) == []


@pytest.mark.compiled
@pytest.mark.parametrize("sack", [True, False])
def test_healthy_downloads_from_their_middle(sack: bool) -> None:
    """Data ahead of more than the assumed window, which is acknowledged once the gap is filled."""
    rng = random.Random(5)  # noqa: S311 - reproducible, no secret
    leaps = 0
    for number in range(20):
        frames = download(rng, 40000 + number, sack=sack)
        for begin in (4, 12, len(frames) // 2):
            replayer = Replayer(ReplaySettings())
            replayer.replay(renumbered(frames[begin:]))
            assert outside(replayer.streams.began_before) == []
            leaps += sum(
                len(side.pending.outside)
                for one in replayer.streams.began_before
                for side in one.sides
                if side.pending is not None
            )
    assert leaps > 3


@pytest.mark.parametrize(
    "evidence", ["reset", "reset and acknowledged", "went on", "ended", "sent again"]
)
def test_evidence_against_a_segment_in_the_middle(evidence: str) -> None:
    talk = conversation()
    del talk.frames[:3]
    talk.server("PA", 500_001, 19, length=1000)
    frame = len(talk.frames)
    if evidence == "reset":
        talk.client("R", 19)
    elif evidence == "reset and acknowledged":
        talk.client("RA", 19, 501_001)
    elif evidence in {"went on", "ended"}:
        talk.server("PA", 1001, 19, length=1000)
        talk.client("PA", 19, 2001, length=10 if evidence == "went on" else 0)
        if evidence == "ended":
            talk.server("FA", 2001, 19)
    else:
        for start in range(1001, 510_001, 1000):
            talk.server("A", start, 19, length=1000)
            talk.client("A", 19, start + 1000)
    replayer = Replayer(ReplaySettings())
    replayer.replay(renumbered(talk.frames))
    assert [one.frame for one in outside(replayer.streams.began_before)] == [frame]


def test_no_evidence_against_a_segment_in_the_middle() -> None:
    """The capture ends, an RST with other numbers ends the flow, or the gap may be filled."""
    for flags, seq, ack in (("A", 19, 1001), ("R", 5, None), ("A", 19, 2001)):
        talk = conversation()
        del talk.frames[:3]
        talk.server("PA", 500_001, 19, length=1000)
        if ack == 2001:
            talk.server("A", 1001, 19, length=1000)
        talk.client(flags, seq, ack)
        replayer = Replayer(ReplaySettings())
        replayer.replay(renumbered(talk.frames))
        assert outside(replayer.streams.began_before) == []


def _middle(frames: list[Frame]) -> list[Frame]:
    return frames[len(frames) // 3 + 4 :]


def test_stray_in_a_flow_that_began_before() -> None:
    talk = conversation()
    stray(talk)
    replayer = Replayer(ReplaySettings())
    replayer.replay(renumbered(talk.frames[3:]))
    (segment,) = outside(replayer.streams.began_before)
    assert segment.frame == 5
    assert segment.flow == "10.0.0.2:80 > 10.0.0.1:40000"
    assert segment.distance == 10_000_000 - 1001


def test_assumed_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A larger scale allows what a smaller one does not."""
    talk = conversation()
    stray(talk)
    del talk.frames[:3]
    path = talk.save(tmp_path / "cut.pcap")
    for scale, count in (("7", 1), ("14", 0)):
        words = ["replay", path, "--summary", "--assume-wscale", scale, "--format", "json"]
        assert main(words) == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["began_before"], len(summary["outside"])) == (1, count)


@pytest.mark.parametrize("strays", [1, 12])
def test_candidates_are_said(
    strays: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the text of a replay, the first ones one by one."""
    talk = conversation()
    for number in range(strays):
        talk.server("PA", 10_000_000 + 1_000_000 * number, 19, length=31)
        talk.client("R", 19)
    del talk.frames[:3]
    assert main(["replay", talk.save(tmp_path / "cut.pcap")]) == 0
    text = capsys.readouterr().out
    assert "1 flow began before the capture" in text
    packets = "1 packet" if strays == 1 else f"{strays} packets"
    assert f"may have called {packets} of these INVALID (--assume-wscale):" in text
    assert text.count("bytes ahead of its stream") == min(strays, 10)
    assert ("  and 2 more" in text) == (strays == 12)


@pytest.mark.parametrize("flight", [10_000, 3_000_000])
def test_scale_that_data_in_flight_shows(flight: int) -> None:
    """A receiver whose window must have been larger than assumed may have had room for more."""
    talk = conversation()
    del talk.frames[:3]
    for start in range(1001, flight, 1000):
        talk.server("A", start, 19, length=1000)
    sent = max(1001, flight + 1)
    talk.client("A", 19, sent, win=20)
    talk.server("PA", sent + 2_000_000, 19, length=31)
    talk.client("R", 19)
    replayer = Replayer(ReplaySettings())
    replayer.replay(renumbered(talk.frames))
    assert len(outside(replayer.streams.began_before)) == (flight == 10_000)


def test_every_segment_has_a_place_in_a_stream() -> None:
    """A held outcome lets go of its stream once it is settled."""
    found = invalid(without(traffic(2), 0.1, 2))
    assert all(outcome.place is None for outcome in found)
    assert all(isinstance(outcome.packet, Packet) for outcome in found)
    assert any(
        isinstance(outcome.packet, Packet) and isinstance(outcome.packet.l4, Segment)
        for outcome in found
    )


def test_small_snaplen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fixed TCP header is enough to follow a flow, and the summary says what is unknown."""
    talk = conversation()
    for frame in talk.frames:
        frame.octets = frame.octets[:44]
    path = talk.save(tmp_path / "snapped.pcap")
    assert main(["replay", path, "--summary", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ctstate"]["INVALID"] == 0
    assert (summary["flows"], summary["cut_options"], summary["cut_openings"]) == (1, 2, 2)
    assert main(["replay", path]) == 0
    assert "inside the TCP options of 2 segments, 2 of them SYNs" in capsys.readouterr().out


def test_cut_options_without_a_cut_syn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows are checked; the end of a list of SACK blocks is missing."""
    talk = conversation()
    talk.client("A", 19, 1001, options=[("SAck", (2001, 3001, 4001, 5001))])
    talk.frames[-1].octets = talk.frames[-1].octets[:48]
    path = talk.save(tmp_path / "snapped.pcap")
    assert main(["replay", path]) == 0
    text = capsys.readouterr().out
    assert "inside the TCP options of 1 segment: SACK blocks may be missing" in text


def damaged_beside(talk: Conversation) -> list[Frame]:
    """The frames of `talk`, in a capture that lacks frames of another flow."""
    other = download(random.Random(1), 50_000, sack=True)  # noqa: S311 - reproducible, no secret
    return renumbered([*without(other, 0.2, 1), *talk.frames])


def test_answer_that_is_missing_where_the_capture_ends() -> None:
    """A client acknowledges more than a SYN+ACK of a server that the host does not see."""
    talk = Conversation()
    talk.client("S", 0)
    talk.client("A", 1, 1)
    talk.client("PA", 1, 1, length=10)
    assert [one.finding and one.finding.reason for one in facts(invalid(talk.frames))] == [
        Reason.BAD_TRANSITION
    ] * 2
    assert facts(invalid(damaged_beside(talk))) == []
    talk.client("A", 11, 500)
    assert len(facts(invalid(damaged_beside(talk)))) == 3


@pytest.mark.parametrize("begins_with", ["F", "R"])
def test_ends_of_a_flow_that_began_before_the_capture(begins_with: str) -> None:
    """Whether it had an entry the file does not tell, unless the entry is in the file."""
    talk = Conversation()
    talk.server(f"{begins_with}A", 1, 1)
    talk.client("FA", 1, 2)
    talk.server("R", 2)
    found = invalid(talk.frames)
    assert [one.doubted and one.doubted.kind for one in found] == [Doubt.UNSEEN_HANDSHAKE] * 3
    gone = Conversation()
    gone.client("A", 1, 1)
    gone.server("A", 1, 1)
    gone.client("FA", 1, 1, wait=6 * 86_400)
    assert len(facts(invalid(damaged_beside(gone)))) == 1


@pytest.mark.parametrize("wait", [0.01, 11.0])
def test_end_behind_an_rst_in_a_flow_that_began_before_the_capture(wait: float) -> None:
    """An RST ends an entry without an answer at once; one that has seen more lasts ten seconds."""
    talk = Conversation()
    talk.server("PA", 1, 1, length=50)
    talk.client("R", 1)
    talk.server("FA", 51, 1, wait=wait)
    assert len(invalid(talk.frames)) == 1
    assert len(facts(invalid(talk.frames))) == (wait > 10)


def test_end_of_one_direction_that_began_before_the_capture() -> None:
    """Silent for longer than an entry without answers lasts, not longer than one with them."""
    talk = Conversation()
    talk.server("PA", 1, 1, length=50)
    talk.server("FA", 51, 1, wait=400.0)
    assert len(invalid(talk.frames)) == 1
    assert facts(invalid(talk.frames)) == []


def test_connections_on_the_ports_of_one_that_began_before_the_capture() -> None:
    """The file begins with the server, whose direction the entry seems to have."""
    talk = conversation()
    talk.server("FA", 1001, 19)
    talk.client("FA", 19, 1002)
    talk.server("A", 1002, 20)
    del talk.frames[:-3]
    for number in (1, 2):
        talk.isns = (20_000_000 * number, 50_000_000 * number)
        talk.open()
        talk.client("PA", 1, 1, length=100)
        talk.server("A", 1, 101)
    found = invalid(renumbered(talk.frames))
    reasons = [one.finding and one.finding.reason for one in found]
    assert reasons.count(Reason.BAD_TRANSITION) == 4
    assert facts(found) == []


def test_syn_in_an_entry_whose_beginning_is_in_the_capture() -> None:
    """A SYN against the direction of a live connection."""
    talk = conversation()
    talk.server("S", 70_000_000)
    (found,) = invalid(talk.frames)
    assert found.finding is not None
    assert (found.finding.reason, found.doubted) == (Reason.BAD_TRANSITION, None)


@pytest.mark.parametrize("goes_on", [False, True])
def test_reset_before_segments_in_flight(goes_on: bool) -> None:
    """The request is missing: the RST is ahead of it. A later segment would show it as forged."""
    talk = Conversation()
    talk.open()
    talk.server("A", 1, 6)
    talk.server("PA", 1, 6, length=5000)
    talk.client("RA", 6, 5001, win=0)
    talk.server("FA", 5001, 6)
    if goes_on:
        talk = conversation()
        talk.client("RA", 50_000, 40_000)
        talk.server("PA", 1001, 19, length=10)
        talk.client("A", 19, 1011)
    found = invalid(talk.frames)
    assert len(found) == (1 if goes_on else 4)
    assert len(facts(found)) == goes_on


@pytest.mark.parametrize("asked", [0, 5, 60_000])
@pytest.mark.parametrize("ends", ["here", "reset", "end"])
def test_hole_from_the_syn_to_the_end_of_the_other_side(asked: int, ends: str) -> None:
    talk = Conversation()
    talk.client("S", 0, win=64240)
    talk.server("FA", 1, 1 + asked)
    if ends == "reset":
        talk.client("RA", 1 + asked, 2, win=0)
    elif ends == "end":
        talk.client("FA", 1 + asked, 2)
        talk.server("A", 2, 2 + asked)
    found = invalid(talk.frames)
    assert Reason.BAD_TRANSITION in [one.finding and one.finding.reason for one in found]
    assert facts(found) == []


@pytest.mark.parametrize("ack", [-70_000, 0, 5_000_000])
def test_end_of_the_connection_before_in_answer_to_a_syn(ack: int) -> None:
    """It acknowledges the SYN neither, nor what may have followed it."""
    talk = Conversation()
    talk.client("S", 0, win=64240)
    talk.server("FA", 80_000_000, ack)
    talk.client("R", ack)
    assert [one.finding and one.finding.reason for one in facts(invalid(talk.frames))] == [
        Reason.BAD_TRANSITION
    ]


def test_frames_of_different_flows_out_of_order() -> None:
    """Each flow is in order; the SYN of any of them may be late, or missing."""
    frames: list[Frame] = []
    for number in range(12):
        talk = Conversation(sport=40_000 + number)
        talk.now += number
        talk.server("SA", 0, 1)
        frames += talk.frames
    assert len(facts(invalid(renumbered(frames)))) == 12
    frames[4:6] = reversed(frames[4:6])
    assert facts(invalid(renumbered(frames))) == []
