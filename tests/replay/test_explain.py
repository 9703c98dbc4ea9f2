# SPDX-License-Identifier: MIT
"""`nfq-guard explain`: the explanation, its numbers and its words."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from nfq_guard.cli import main
from nfq_guard.conntrack.kernel_rules import KERNELS
from tests.support import captures
from tests.support.conversation import Conversation


@pytest.fixture
def talk() -> Conversation:
    """A flow with 10 kB sent by the server."""
    talk = Conversation(client_isn=2**32 - 50)
    talk.open()
    talk.client("PA", 1, 1, length=100)
    for start in range(1, 10_001, 1000):
        talk.server("A", start, 101, length=1000)
        talk.client("A", 101, start + 1000)
    return talk


class Explains:
    """Explains the last frame of a conversation."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = tmp_path / "talk.pcap"
        self.capsys = capsys

    def text(self, talk: Conversation, *words: str) -> str:
        name = talk.save(self.path)
        assert main(["explain", name, str(len(talk.frames)), *words]) == 0
        return self.capsys.readouterr().out

    def object(self, talk: Conversation, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text(talk, "--format", "json", *words))
        return found


@pytest.fixture
def explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Explains:
    return Explains(tmp_path, capsys)


def test_ack_of_unseen_data(talk: Conversation, explains: Explains) -> None:
    """Relative numbers, across 2**32; the bound that broke, and by how much."""
    talk.client("A", 101, 10_001 + 7)
    text = explains.text(talk)
    assert "INVALID ack-over" in text
    assert "flags A, seq 101 (51), ack 10008 (15008), 0 bytes of data" in text
    assert "window 502 shifted by 7: 64256 bytes" in text
    assert "left 10.0.0.1:40000, right 10.0.0.2:80, 25 packets:" in text
    assert "... 16 more packets" in text
    assert "III Does it acknowledge only what was sent?" in text
    assert "broken by 7 bytes" in text
    assert text.count("holds") == 3
    assert "5.10  INVALID ack-over: ack 7 bytes beyond 15001" in text
    assert "allow, by the rule window" in text
    # The first line names the file, as long as its path is.
    assert all(len(line) <= 100 for line in text.splitlines()[1:])


def test_bounds_as_objects(talk: Conversation, explains: Explains) -> None:
    talk.client("A", 101, 10_001 + 7)
    found = explains.object(talk)
    assert (found["frame"], found["reason"], found["kernel"]) == (25, "ack-over", "6.1")
    assert [bound["holds"] for bound in found["bounds"]] == [True, True, False, True]
    assert found["bounds"][2] == {
        "bound": "ack-over",
        "actual": {"name": "ack", "seq": 15008, "relative": 10008},
        "limit": {"name": "td_end", "seq": 15001, "relative": 10001},
        "holds": False,
        "distance": 7,
        "room": 0,
    }
    assert found["flow"]["peers"]["original"]["td_scale"] == 7
    assert len(found["history"]) == 10
    assert found["history_left_out"] == 14
    assert [one["kernel"] for one in found["kernels"]] == list(KERNELS)


@pytest.mark.parametrize(("kernel", "word"), [("5.15", "INVALID seq-under"), ("6.1", "(ignored)")])
def test_late_retransmission(
    talk: Conversation, explains: Explains, kernel: str, word: str
) -> None:
    """Every explanation has the result of each generation."""
    for start in range(10_001, 90_001, 1000):
        talk.server("A", start, 101, length=1000)
        talk.client("A", 101, start + 1000)
    talk.server("A", 1, 101, length=1000)
    text = explains.text(talk, "--kernel", kernel)
    assert f"talk.pcap: {'ESTABLISHED ' if kernel == '6.1' else ''}{word}" in text
    assert "broken by" in text
    others = text.partition("Under other kernels")[2]
    assert "5.10  INVALID seq-under" in others
    assert "6.1   ESTABLISHED (ignored)" in others
    assert "late retransmission" in text


def test_rst_from_before(talk: Conversation, explains: Explains) -> None:
    talk.client("R", 50)
    text = explains.text(talk)
    assert "RST Does it come after what was acknowledged?" in text
    assert "broken by 51 bytes" in text


def test_sack_counts_as_acknowledged(talk: Conversation, explains: Explains) -> None:
    edge = 5000 + 20_001
    talk.client("A", 101, 5001, options=[("SAck", (edge - 1000, edge))])
    text = explains.text(talk)
    assert "sack 20001 (25001)" in text
    assert "SACK 19001 (24001)-20001 (25001)" in text


def test_overshoot(talk: Conversation, explains: Explains) -> None:
    """Up to one window beyond what was offered is ignored from 6.1 on."""
    talk.server("A", 10_001 + 65_000, 101, length=1000)
    text = explains.text(talk)
    assert "talk.pcap: ESTABLISHED (ignored)" in text
    assert "by less than one window" in text


@pytest.mark.parametrize(("kernel", "timeout_s"), [("5.10", 10), ("6.1", 10), ("6.12", 300)])
def test_an_inexact_rst(
    talk: Conversation, explains: Explains, kernel: str, timeout_s: int
) -> None:
    """In the window, but not at the acknowledged number: the flow stays, with a short timeout."""
    talk.server("R", 10_501)
    text = " ".join(explains.text(talk, "--kernel", kernel).split())
    assert "ESTABLISHED: all bounds hold. Conntrack does not close the flow" in text
    assert "is not 10001 (15001), the last one that the other side acknowledged" in text
    assert f"The flow stays ESTABLISHED, but the entry expires {timeout_s} s from now" in text
    assert "moves the window" not in text


@pytest.mark.parametrize(("wait", "word"), [(9, "ESTABLISHED"), (11, "INVALID no-entry")])
def test_what_follows_an_inexact_rst(
    talk: Conversation, explains: Explains, wait: int, word: str
) -> None:
    """The next packet finds what the explanation of the RST says."""
    talk.server("R", 10_501)
    talk.client("FA", 101, 10_001, wait=wait)
    assert explains.text(talk).splitlines()[0].endswith(word)


def test_an_exact_rst(talk: Conversation, explains: Explains) -> None:
    talk.server("R", 10_001)
    text = " ".join(explains.text(talk).split())
    assert "all bounds hold. The RST closes the flow: the entry expires 10 s from now." in text


def test_an_rst_of_a_flow_without_an_answer(explains: Explains) -> None:
    talk = Conversation()
    talk.client("S", 0)
    talk.client("R", 1)
    assert "The RST deletes the entry" in explains.text(talk)


@pytest.mark.parametrize(
    ("flags", "seq", "ack", "said"),
    [
        ("A", 101, 10_001, "all bounds hold"),
        ("S", 0, None, "checks no window"),
        ("SF", 0, None, "No TCP implementation sends this combination"),
        ("SA", 0, 1, "INVALID, bad-transition: original syn+ack in ESTABLISHED"),
    ],
)
def test_words_for(
    talk: Conversation, explains: Explains, flags: str, seq: int, ack: int | None, said: str
) -> None:
    talk.client(flags, seq, ack)
    assert said in " ".join(explains.text(talk).split())


def test_first_packets(explains: Explains) -> None:
    """NEW, the answer, and a flow picked up in the middle."""
    talk = Conversation()
    talk.client("S", 0)
    text = explains.text(talk)
    assert "This is the first packet of it in the capture." in text
    assert "a SYN begins a flow" in text
    talk.server("SA", 0, 1)
    text = explains.text(talk)
    assert "not seen yet" in text
    assert "opens the window of its sender" in " ".join(text.split())
    middle = Conversation()
    middle.client("A", 1, 1)
    assert "picks it up in the middle" in " ".join(explains.text(middle).split())
    middle.server("A", 1, 1, length=10)
    assert "its window begins here" in " ".join(explains.text(middle).split())
    middle.server("A", 1 + 2**20, 1)
    assert "counts as liberal" in " ".join(explains.text(middle).split())


def test_liberal_host(talk: Conversation, explains: Explains) -> None:
    talk.client("A", 101, 90_000)
    assert "conntrack is set to be liberal" in " ".join(explains.text(talk, "--be-liberal").split())


def test_closing_flow_takes_any_rst(talk: Conversation, explains: Explains) -> None:
    talk.client("FA", 101, 10_001)
    talk.server("FA", 10_001, 102)
    talk.client("R", 5)
    assert "the flow is closing" in " ".join(explains.text(talk).split())


def test_expired_entry(talk: Conversation, explains: Explains) -> None:
    talk.client("FA", 101, 10_001)
    talk.server("FA", 10_001, 102)
    talk.client("A", 102, 10_002)
    talk.server("FA", 10_001, 102, wait=150)
    text = explains.text(talk)
    assert "INVALID no-entry" in text
    assert "Its entry had expired 30.0 s before this packet." in text
    assert explains.object(talk)["expired_s"] == 30.0
    assert "the entry had expired before it came." in " ".join(text.split())


def test_hints_at_what_is_behind_it(talk: Conversation, explains: Explains) -> None:
    """From all INVALID packets of the flow, before and after the explained one."""
    talk.server("R", 10_001)
    for _ in range(12):
        talk.server("FA", 10_001, 101, wait=20)
    text = " ".join(explains.text(talk).split())
    assert "Possible causes, by all INVALID packets of the flow" in text
    assert "Entries expire before their connections end. 12 of 12 packets without an entry" in text
    few = Conversation()
    few.client("FA", 1, 1)
    assert "Possible causes" not in explains.text(few)


CLIENT, SERVER, PRIVATE = "198.51.100.10", "203.0.113.20", "10.88.0.8"


@pytest.mark.parametrize(
    ("segments", "cause"),
    [
        ([(SERVER, CLIENT, "SA")], "the SYN took another path"),
        ([(SERVER, CLIENT, "FA")], "began before conntrack watched it"),
        ([(PRIVATE, CLIENT, "R")], "the untranslated twin of a live flow"),
        ([(CLIENT, SERVER, "S"), (CLIENT, SERVER, "A")], "as with direct server return"),
        (
            [(CLIENT, SERVER, "S"), (CLIENT, SERVER, "R")],
            "conntrack knows of no room beyond the SYN",
        ),
    ],
)
def test_causes_by_what_the_capture_shows(
    explains: Explains, segments: list[tuple[str, str, str]], cause: str
) -> None:
    talk = Conversation()
    for src, dst, flags in segments:
        ports = {"sport": 40000, "dport": 443} if src == CLIENT else {"sport": 443, "dport": 40000}
        seq = 2000 if flags == "R" and src == CLIENT else 1000
        talk.add(bytes(IP(src=src, dst=dst) / TCP(**ports, flags=flags, seq=seq, ack=500)))
    assert cause in " ".join(explains.text(talk).split())


def test_other_protocols(explains: Explains) -> None:
    talk = Conversation()
    talk.add(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5, dport=53)))
    assert "its protocol has no window" in " ".join(explains.text(talk).split())
    talk.add(bytes(IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=53, dport=5)))
    text = explains.text(talk)
    assert "left 10.0.0.1:5, right 10.0.0.2:53, 2 packets:" in text
    assert explains.object(talk)["flow"]["peers"] == {"original": None, "reply": None}
    talk.add(bytes(IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=53, dport=5, chksum=1)))
    text = explains.text(talk, "--checksum", "verify")
    assert "by the rule broken: the packet is dropped.\n" in text, "UDP retransmits nothing"


def test_icmp_error(talk: Conversation, explains: Explains) -> None:
    quoted = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80)
    talk.add(bytes(IP(src="10.9.9.9", dst="10.0.0.1") / ICMP(type=3, code=4) / quoted))
    text = explains.text(talk)
    assert "RELATED" in text
    assert "25 packets" in text
    assert "<- icmp type 3 code 4 about" in text


def test_the_ends_of_a_flow_without_ports(talk: Conversation, explains: Explains) -> None:
    talk.add(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8, id=7)))
    assert "left 10.0.0.1, right 10.0.0.2, 1 packet:" in explains.text(talk)


@pytest.mark.parametrize(
    ("octets", "linktype", "said"),
    [
        (bytes(Ether() / ARP()), 1, "no IP packet"),
        (bytes(40), 189, "cannot read"),
        (bytes(fragment(IP() / UDP() / Raw(b"x" * 3000), 1400)[0]), 101, "an IP fragment"),
        (bytes(IP() / TCP())[:30], 101, "the snapshot length was too small"),
    ],
)
def test_no_packet(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    octets: bytes,
    linktype: int,
    said: str,
) -> None:
    path = tmp_path / "strange.pcap"
    path.write_bytes(captures.pcap([(1, 0, octets)], linktype=linktype))
    assert main(["explain", str(path), "1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "no packet for conntrack" in text
    assert said in text


def test_compressed(talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(talk.save(tmp_path / "talk.pcap"))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert main(["explain", str(path), "1"]) == 0
    assert "NEW" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["talk.pcap", "99"], "FRAME: talk.pcap has 24 frames, not 99"),
        (["/dev/zero", "1"], "CAPTURE: /dev/zero cannot be read twice; save it to a file"),
        (["missing", "1"], "missing: No such file or directory"),
    ],
)
def test_wrong_usage(
    talk: Conversation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    talk.save(tmp_path / "talk.pcap")
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *words]) == 2
    assert capsys.readouterr().err == f"nfq-guard: {message}\n"


def test_a_frame_of_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", "talk.pcap", "0"])
    assert ended.value.code == 2
    assert "FRAME: expected a whole number from 1, found '0'" in capsys.readouterr().err


@pytest.mark.compiled
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 60), st.integers(0, 255)), max_size=6
    ),
    number=st.integers(1, 10),
    kernel=st.sampled_from(["5.10", "5.15", "6.1"]),
)
def test_any_frame_can_be_explained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[tuple[int, int, int]],
    number: int,
    kernel: str,
) -> None:
    """Any octets, in both formats, without a line that is too long."""
    talk = Conversation(server_isn=2**31 - 2)
    talk.open()
    for start in range(1, 3001, 1000):
        talk.server("A", start, 1, length=1000)
        talk.client("A", 1, start + 1000)
    talk.client("R", 1)
    for index, position, value in changes:
        frame = talk.frames[index]
        octets = bytearray(frame.octets)
        octets[position % len(octets)] = value
        frame.octets = bytes(octets)
    name = talk.save(tmp_path / "any.pcap")
    common = ["explain", name, str(number), "--kernel", kernel, "--checksum", "ignore"]
    assert main(common) == 0
    assert main([*common, "--format", "json"]) == 0
    json.loads(capsys.readouterr().out.splitlines()[-1])
