# SPDX-License-Identifier: MIT
"""Packets inside packets are found and counted, and followed if requested."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import GRE, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from nfq_guard.capture.links import ETHERNET, RAW
from nfq_guard.capture.tunnels import UNREAD, Inner, inner_of
from nfq_guard.cli import main
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet
from tests.support.captures import pcap
from tests.support.conversation import Conversation

OUTER = IP(src="192.0.2.1", dst="192.0.2.2")
INNER = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80, flags="S")
LABELS = b"\0\x01\0\x40\0\x02\x01\x40"
FRAME = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / INNER


def found(packet: Scapy) -> tuple[Inner | None, bytes]:
    octets = bytes(packet)
    outer = decode(octets)
    assert isinstance(outer, Packet)
    inner = inner_of(outer, octets)
    return inner, b"" if inner is None else octets[inner.start :]


@pytest.mark.parametrize(
    ("packet", "tunnel", "linktype", "inside"),
    [
        (OUTER / UDP(dport=4789) / VXLAN(vni=1, flags=8) / FRAME, "VXLAN", ETHERNET, FRAME),
        (OUTER / UDP(dport=8472) / VXLAN(vni=1, flags=8) / FRAME, "VXLAN", ETHERNET, FRAME),
        (OUTER / UDP(dport=6081) / GENEVE(vni=1, proto=0x6558) / FRAME, "GENEVE", ETHERNET, FRAME),
        (OUTER / UDP(dport=6081) / GENEVE(vni=1, proto=0x0800) / INNER, "GENEVE", RAW, INNER),
        (OUTER / GRE(proto=0x0800) / INNER, "GRE", RAW, INNER),
        (
            OUTER / GRE(key_present=1, seqnum_present=1, key=7, proto=0x6558) / FRAME,
            "GRE",
            ETHERNET,
            FRAME,
        ),
        (OUTER / GRE(chksum_present=1, proto=0x0800) / INNER, "GRE", RAW, INNER),
        (OUTER / GRE(proto=0x8847) / Raw(LABELS) / INNER, "GRE", RAW, INNER),
        (OUTER / GRE(key_present=1, proto=0x8848) / Raw(LABELS) / INNER, "GRE", RAW, INNER),
        (OUTER / UDP(dport=6635) / Raw(LABELS) / INNER, "MPLS in UDP", RAW, INNER),
        (OUTER / INNER, "IPIP", RAW, INNER),
        (IPv6(src="fd00::1", dst="fd00::2") / INNER, "IPIP", RAW, INNER),
        (OUTER / IPv6() / TCP(), "IP6IP", RAW, IPv6() / TCP()),
    ],
)
def test_what_is_inside(packet: Scapy, tunnel: str, linktype: int, inside: Scapy) -> None:
    inner, octets = found(packet)
    assert inner is not None
    assert (inner.tunnel, inner.linktype) == (tunnel, linktype)
    assert octets == bytes(inside)


GTP_U = OUTER / UDP(dport=2152) / Raw(b"\x30\xff\0\x28\0\0\0\1") / INNER


@pytest.mark.parametrize(
    ("packet", "tunnel"),
    [
        (GTP_U, "GTP-U"),
        (OUTER / UDP(dport=4790) / Raw(b"\x0c\0\0\1\0\0\1\0") / INNER, "VXLAN-GPE"),
        (OUTER / UDP(dport=6080) / Raw(b"\0\4\0\0") / INNER, "GUE"),
        (OUTER / UDP(dport=6080) / INNER, "GUE"),
        (OUTER / GRE(proto=0x88BE, seqnum_present=1) / Raw(bytes(8)) / FRAME, "ERSPAN"),
        (OUTER / GRE(proto=0x22EB, seqnum_present=1) / Raw(bytes(12)) / FRAME, "ERSPAN"),
        (OUTER.__class__(proto=115) / Raw(bytes(8)) / FRAME, "L2TPv3"),
        (OUTER.__class__(proto=50) / Raw(bytes(40)), "ESP"),
        (OUTER / UDP(dport=4500) / Raw(b"\0\0\0\1" + bytes(40)), "ESP"),
        (OUTER / UDP(dport=1701) / Raw(b"\x40\2" + bytes(40)), "L2TP"),
        (OUTER / GRE(proto=0x880B, version=1, seqnum_present=1) / Raw(bytes(40)), "PPTP"),
        (OUTER / GRE(proto=0x8847) / Raw(LABELS + bytes(4)) / FRAME, "GRE"),
        (OUTER / UDP(dport=6635) / Raw(bytes(64)), "MPLS in UDP"),
    ],
)
def test_what_is_inside_is_not_read(packet: Scapy, tunnel: str) -> None:
    inner, _ = found(packet)
    assert inner is not None
    assert (inner.tunnel, inner.linktype) == (tunnel, UNREAD)


def test_a_tunnel_that_is_not_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its wrong checksum is looked at, and where most packets take the shortcut."""
    outside = Conversation()
    wrong = GTP_U.copy()
    wrong[UDP].chksum = 7
    for packet in (GTP_U, GTP_U, GTP_U, wrong):
        outside.add(bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet))
        outside.frames[-1].linktype = ETHERNET
    path = tmp_path / "gtp.pcap"
    records = [(0, number, frame.octets) for number, frame in enumerate(outside.frames)]
    path.write_bytes(pcap(records))
    for more in ([], ["--decapsulate"]):
        assert main(["replay", str(path), *more]) == 0
        text = capsys.readouterr().out
        assert "carry others (GTP-U 4), those inside are not judged: replay does not" in text
    assert main(["replay", str(path), "--summary", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["tunnels"] == {"GTP-U": 4}


@pytest.mark.parametrize(
    "packet",
    [
        OUTER / UDP(dport=2152) / Raw(b"\x32\1" + bytes(40)),
        OUTER / UDP(dport=4790) / Raw(bytes(40)),
        OUTER / UDP(dport=6080) / Raw(b"\x20" + bytes(40)),
        OUTER / UDP(dport=4789) / Raw(bytes(40)),
        OUTER / UDP(dport=4789) / Raw(b"\x08"),
        OUTER / UDP(dport=6081) / Raw(b"\xff" * 40),
        OUTER / UDP(dport=6081) / GENEVE(proto=0x1234) / FRAME,
        OUTER / UDP(dport=53) / Raw(bytes(40)),
        OUTER / GRE(proto=0x880B, version=1) / Raw(bytes(40)),
        OUTER / UDP(dport=4500) / Raw(bytes(40)),
        OUTER / UDP(dport=4500) / Raw(b"\xff"),
        OUTER / UDP(dport=1701) / Raw(b"\xc8\2" + bytes(40)),
        OUTER / GRE(proto=0x1234) / Raw(bytes(40)),
        OUTER / GRE(routing_present=1, proto=0x0800) / INNER,
        OUTER.__class__(proto=47) / Raw(b"\0"),
        OUTER / TCP(dport=4789) / Raw(bytes(40)),
        OUTER.__class__(proto=4, frag=7) / Raw(bytes(40)),
        OUTER.__class__(proto=99) / Raw(bytes(40)),
    ],
)
def test_what_is_no_tunnel(packet: Scapy) -> None:
    assert found(packet) == (None, b"")


@given(proto=st.sampled_from([4, 17, 41, 47]), octets=st.binary(max_size=60))
def test_any_octets(proto: int, octets: bytes) -> None:
    packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2", proto=proto) / Raw(octets))
    outer = decode(packet)
    if isinstance(outer, Packet):
        inner = inner_of(outer, packet)
        assert inner is None or inner.start > outer.l4_offset - 1


def tunnelled(tmp_path: Path) -> str:
    """A conversation inside VXLAN, with a stray far outside its window."""
    inside = Conversation()
    inside.open()
    inside.server("PA", 10_000_000, 1, length=31)
    outside = Conversation()
    for frame in inside.frames:
        carried = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / Raw(frame.octets)
        carried.type = 0x0800
        outside.now += 0.001
        outside.add(bytes(OUTER / UDP(dport=4789) / VXLAN(vni=1, flags=8) / carried))
    return outside.save(tmp_path / "vxlan.pcap")


def test_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tunnelled(tmp_path)
    assert main(["replay", path, "--format", "json", "--summary"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["tunnels"], summary["packets"], summary["reason"]) == ({"VXLAN": 4}, 4, {})
    assert main(["replay", path]) == 0
    assert "(VXLAN 4), those inside are not judged: --decapsulate" in capsys.readouterr().out


def test_followed_on_wish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outer and inner packets have separate entries, and the same frame number."""
    path = tunnelled(tmp_path)
    assert main(["replay", path, "--decapsulate", "--format", "json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["frame"], row["reason"], row["sport"]) == (4, "seq-over", 80)
    assert main(["replay", path, "--decapsulate", "--format", "json", "--summary"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["frames"], summary["packets"], summary["flows"]) == (4, 8, 2)
    assert main(["whatif", path, "--decapsulate", "--policy", "preset:strict"]) == 0
    assert "would drop 1" in capsys.readouterr().out
