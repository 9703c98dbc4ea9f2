# SPDX-License-Identifier: MIT
"""Compares the daemon's events with the kernel's log, for each reason that this kernel has.

Packets pass through the rules, the queue, the daemon and its log; nothing is called directly. The
kernel's text, with the bound that it prints, arrives on NFLOG (kernel.md 1.12). Where the kernel
logs nothing (kernel.md 1.12, "silent"), the case states the reason.

The daemon runs the default policy in mode dry-run; each event is compared with what that policy
decides for its reason.
"""

import json
import platform
import random
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.conntrack.states import CLASS_RST, SEGMENT_CLASS
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Reason
from nfq_guard.flow import (
    IPV4,
    IPV6,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    CtState,
    Evidence,
    FlowTuple,
    Hook,
)
from nfq_guard.names import address
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, Queued
from tests.fuzz_kernel.compare import ends_of
from tests.fuzz_kernel.generate import next_step, start
from tests.support.kernel_log import is_ignored, reason_of
from tests.support.live import LiveConntrack
from tests.support.packets import A4, A6, B4, B6, C4, C6, error, icmp, ip, tcp, udp
from tests.support.queue import QUEUE, GuardProcess, wait_for
from tests.support.reason_traces import AFTER_A_SYN, OPEN, REASON_TRACES
from tests.support.sctp import chunk, init, sctp
from tests.support.trace import PLACES, Ends, Step, parse

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]

# The decision of the default policy for each reason: the rule and its action. None of these flows
# is translated unless a test says so.
_TREATMENT: dict[Reason, tuple[str, str]] = {
    # Both ends check these themselves.
    Reason.SEQ_OVER: ("window", "allow"),
    Reason.ACK_OVER: ("window", "allow"),
    Reason.RST_OUTSIDE: ("window", "allow"),
    Reason.BAD_TAG: ("window", "allow"),
    # One direction of a connection may take another path.
    Reason.BAD_TRANSITION: ("transition", "allow"),
    Reason.NO_ENTRY: ("no-entry", "allow"),
    # It fits the window by the time of the lookup.
    Reason.RACED: ("raced", "allow"),
    # Path MTU discovery depends on it.
    Reason.ICMP_UNRELATED: ("icmp-unrelated", "allow"),
    # No host has a socket for it.
    Reason.ICMP_MISMATCH: ("icmp-mismatch", "allow"),
    # Every receiver discards these.
    Reason.BAD_FLAGS: ("broken", "drop"),
    Reason.BAD_CHECKSUM: ("broken", "drop"),
    Reason.MALFORMED: ("broken", "drop"),
    # A guard without evidence does not stop traffic.
    Reason.UNSUPPORTED: ("on-unknown", "allow"),
}
_QUERY = b"\0\7\0\1" + bytes(8)


class Guarded:
    """The live conntrack with a daemon behind it that logs everything.

    Attributes:
        live: The conntrack.
        out: The last packet, as it left the namespace.
    """

    def __init__(self, live: LiveConntrack, guard: GuardProcess) -> None:
        self.live = live
        self.out = b""
        self._log = guard.log.open("rb")
        self._line = b""

    def judge(self, octets: bytes) -> tuple[dict[str, Any] | None, list[str]]:
        """The daemon's event about one packet, None if not INVALID, and the kernel's texts."""
        self.out = out = self.live.send_through_queue(octets)
        texts = [text for text, _ in self.live.log_texts() if "timeout to" not in text]
        dscp = out[1] >> 2 if out[0] >> 4 == 4 else ((out[0] << 8 | out[1]) >> 6) & 0x3F
        # The DSCP field is written by a rule before that of the guard.
        if CTSTATES[dscp - 1] is not CtState.INVALID:
            return None, texts
        event: dict[str, Any] = {}
        while event.get("event") != "packet_judged":
            wait_for(self._next_line)
            event = json.loads(self._line)
        treatment = _TREATMENT[event["reason"]]
        if event["nat"] in {"snat", "dnat", "both"}:
            treatment = ("translated", "drop")
        assert (event["rule"], event["action"]) == treatment, event
        return event, texts

    def _next_line(self) -> bool:
        self._line = (b"" if self._line.endswith(b"\n") else self._line) + self._log.readline()
        return self._line.endswith(b"\n")

    def close(self) -> None:
        self._log.close()


def guarded(sysctls: Sysctls, tmp_path: Path, zones: str = "[0]") -> Iterator[Guarded]:
    config = tmp_path / "config.toml"
    config.write_text(
        f"[daemon]\nqueue = {QUEUE}\ncontrol_socket = ''\n"
        f"zones = {zones}\nlog_interval_s = 0\nlog_events_per_s = 10000\nlog_allowed = true\n"
        'mode = "dry-run"\n[policy]\ninclude = "preset:default"\n'
    )
    with LiveConntrack(sysctls) as live:
        words = ("--config", str(config))
        with GuardProcess(live.space, tmp_path / "log", *words).ready() as guard:
            (started,) = guard.events("started")
            assert started["evidence"] == "bpf"
            with closing(Guarded(live, guard)) as pair:
                yield pair
            assert guard.stop() == 0
            (stopped,) = guard.events("stopped")
            assert stopped["judging_failures"] == stopped["events_suppressed"] == 0


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    yield from guarded(DEFAULT_SYSCTLS, tmp_path_factory.mktemp("usual"))


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    if "usual" in request.fixturenames:
        request.getfixturevalue("usual").live.forget()


def same_words(event: dict[str, Any], texts: list[str]) -> None:
    """Assert that the reason is the kernel's, and the limit the bound that the kernel printed."""
    (text,) = texts
    assert not is_ignored(text)
    assert event["reason"] == reason_of(text), (event, text)
    printed = re.search(r"upper bound (\d+)", text)
    if printed:
        assert event["breach"]["bound"] == event["reason"]
        # The kernel prints the first number that fails.
        assert (event["breach"]["limit"] + 1) % 2**32 == int(printed[1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("reason", REASON_TRACES)
def test_segments(usual: Guarded, reason: Reason, family: int, place: str) -> None:
    for serial, lines in enumerate(REASON_TRACES[reason]):
        ends = ends_of(family, serial)
        steps = [parse(line, PLACES[place]) for line in lines]
        for step in steps[:-1]:
            assert usual.judge(ends.octets(step)) == (None, [])
        event, texts = usual.judge(ends.octets(steps[-1]))
        assert event is not None
        assert event["reason"] == reason
        assert event["evidence"] == "bpf"
        assert (event["family"], event["seq"]) == (family, steps[-1].seq)
        same_words(event, texts)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_an_rst_after_an_ignored_syn(usual: Guarded, family: int) -> None:
    """The kernel checks it against the window, and the entry no longer shows why (`diagnose`)."""
    ends = ends_of(family, 900)
    *before, first, second = [ends.octets(parse(line)) for line in AFTER_A_SYN]
    for octets in before:
        assert usual.judge(octets)[0] is None
    for octets, cause in ((first, Reason.ACK_OVER), (second, Reason.RST_OUTSIDE)):
        event, (text,) = usual.judge(octets)
        assert event is not None
        assert (event["reason"], reason_of(text)) == (Reason.RST_OUTSIDE, cause)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_random_flows(usual: Guarded, family: int) -> None:
    """Each packet that the kernel calls INVALID has the same reason and the same bound."""
    rng = random.Random(family)  # noqa: S311 - reproducible, no secret
    reasons: dict[str, int] = {}
    for serial in range(40):
        ends, numbers, chaos = ends_of(family, 1000 + serial), start(rng), rng.choice((0.1, 0.6))
        way = FlowTuple(PROTO_TCP, *ends.addresses, *ends.ports)
        for _ in range(25):
            step = next_step(rng, usual.live.snapshot(way), numbers, chaos)
            event, texts = usual.judge(ends.octets(step))
            if event is None:
                assert all(is_ignored(text) for text in texts), texts
                continue
            if event["reason"] == "rst-outside" and _after_an_ignored_syn(step, texts):
                continue
            same_words(event, texts)
            reasons[event["reason"]] = reasons.get(event["reason"], 0) + 1
    assert set(reasons) == {reason.value for reason in REASON_TRACES}


def _after_an_ignored_syn(step: Step, texts: list[str]) -> bool:
    """Whether an RST was not checked against `td_maxack`, as it followed an ignored SYN."""
    return SEGMENT_CLASS[step.flags] == CLASS_RST and "invalid rst" not in texts[0]


def _error(src: bytes, dst: bytes, quoted: bytes) -> bytes:
    return error(src, dst, 1 if len(src) == 16 else 3, quoted)


def _later_fragment(octets: bytes) -> bytes:
    """The packet as a later fragment: its first octets look like ports, but are not."""
    return octets[:6] + b"\0\7" + octets[8:]


def _association(one: bytes, other: bytes, port: int) -> list[bytes]:
    """The packets that set up an association whose replies carry the tag 7."""
    return [
        sctp(one, other, port, 2, 0, init(1, 7)),
        sctp(other, one, 2, port, 7, init(2, 9)),
        sctp(one, other, port, 2, 9, chunk(10, b"cookie")),
        sctp(other, one, 2, port, 7, chunk(11)),
    ]


_SPOILT = tcp(A4, B4, 1, 2, 0x02)[:36] + b"\1\2\0\0"
_OTHERS: dict[str, tuple[list[bytes], Reason, bool]] = {
    "segment, checksum": ([_SPOILT], Reason.BAD_CHECKSUM, True),
    "segment of IPv6, checksum": (
        [tcp(A6, B6, 1, 2, 0x02)[:56] + b"\1\2\0\0"], Reason.BAD_CHECKSUM, True,
    ),
    "segment, header cut": ([ip(A4, B4, PROTO_TCP, _SPOILT[20:39])], Reason.MALFORMED, False),
    "segment of IPv6, header cut": (
        [ip(A6, B6, PROTO_TCP, _SPOILT[20:39])], Reason.MALFORMED, False,
    ),
    "segment, header too short": (
        [ip(A4, B4, PROTO_TCP, _SPOILT[20:32] + b"\x40" + bytes(7))], Reason.MALFORMED, True,
    ),
    "segment, header too long": (
        [ip(A4, B4, PROTO_TCP, _SPOILT[20:32] + b"\x60" + bytes(7))], Reason.MALFORMED, True,
    ),
    "segment of IPv6, header too short": (
        [ip(A6, B6, PROTO_TCP, _SPOILT[20:32] + b"\x40" + bytes(7))], Reason.MALFORMED, True,
    ),
    "segment of IPv6, header too long": (
        [ip(A6, B6, PROTO_TCP, _SPOILT[20:32] + b"\x60" + bytes(7))], Reason.MALFORMED, True,
    ),
    "datagram, header cut": ([ip(A4, B4, 17, b"\0\1\0\2\0\x08")], Reason.MALFORMED, True),
    "datagram of IPv6, header cut": (
        [ip(A6, B6, 17, b"\0\1\0\2\0\x08")], Reason.MALFORMED, True,
    ),
    "datagram, length below its header": (
        [ip(A4, B4, 17, b"\0\1\0\2\0\7\1\2ab")], Reason.MALFORMED, True,
    ),
    "datagram of IPv6, checksum": (
        [ip(A6, B6, 17, b"\0\1\0\2\0\x0a\1\2ab")], Reason.BAD_CHECKSUM, True,
    ),
    "datagram of IPv6, length": (
        [ip(A6, B6, 17, b"\0\1\0\2\0\x63\1\2ab")], Reason.MALFORMED, True,
    ),
    "message, cut": ([ip(A4, B4, PROTO_ICMP, b"\x08\0\xf7\xff\0\0\0")], Reason.MALFORMED, True),
    "message of IPv6, cut": (
        [ip(A6, B6, PROTO_ICMPV6, b"\x80\0\0\0\0\0\0")], Reason.MALFORMED, True,
    ),
    "router solicitation": ([icmp(A4, B4, 10, bytes(4))], Reason.NO_ENTRY, False),
    "timestamp reply that nobody asked for": (
        [icmp(A4, B4, 14, _QUERY + bytes(4))], Reason.NO_ENTRY, False,
    ),
    "mask reply that nobody asked for": ([icmp(A4, B4, 18, _QUERY)], Reason.NO_ENTRY, False),
    "message of IPv6, unknown type": ([icmp(A6, B6, 200, _QUERY)], Reason.NO_ENTRY, False),
    "redirect about nothing": (
        [error(B4, A4, 5, udp(A4, B4, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "redirect of IPv6, hop limit": (
        [icmp(B6, A6, 137, bytes(36), hop_limit=64)], Reason.MALFORMED, True,
    ),
    "source quench about nothing": (
        [error(B4, A4, 4, udp(A4, B4, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "time exceeded about nothing": (
        [error(B4, A4, 11, udp(A4, B4, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "parameter problem about nothing": (
        [error(B4, A4, 12, udp(A4, B4, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "packet too big about nothing": (
        [error(B6, A6, 2, udp(A6, B6, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "time exceeded of IPv6 about nothing": (
        [error(B6, A6, 3, udp(A6, B6, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "parameter problem of IPv6 about nothing": (
        [error(B6, A6, 4, udp(A6, B6, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "error of IPv6, unknown type": (
        [error(B6, A6, 100, udp(A6, B6, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "error of IPv6 that quotes too little": (
        [udp(A6, B6, 1, 2), _error(B6, A6, udp(A6, B6, 1, 2)[:42])], Reason.ICMP_UNRELATED, False,
    ),
    "error that quotes a later fragment": (
        [udp(A4, B4, 1, 2), _error(B4, A4, _later_fragment(udp(A4, B4, 1, 2)))],
        Reason.ICMP_UNRELATED, False,
    ),
    "error about GRE": (
        [_error(B4, A4, ip(A4, B4, 47, bytes(8)))], Reason.ICMP_UNRELATED, False,
    ),
    "error of IPv6 about SCTP": (
        [_error(B6, A6, sctp(A6, B6, 15, 2, 0, init(1, 7)))], Reason.ICMP_UNRELATED, False,
    ),
    "SCTP of IPv6, checksum": (
        [sctp(A6, B6, 16, 2, 0, init(1, 7))[:-1] + b"\7"], Reason.BAD_CHECKSUM, True,
    ),
    "SCTP of IPv6 without an entry": ([sctp(A6, B6, 17, 2, 8, chunk(0))], Reason.NO_ENTRY, False),
    "datagram, checksum": (
        [ip(A4, B4, 17, b"\0\1\0\2\0\x0a\1\2ab")], Reason.BAD_CHECKSUM, True,
    ),
    "datagram, length": ([ip(A4, B4, 17, b"\0\1\0\2\0\x63\1\2ab")], Reason.MALFORMED, True),
    "message, checksum": (
        [ip(A4, B4, PROTO_ICMP, b"\x08\0\1\2" + _QUERY)], Reason.BAD_CHECKSUM, True,
    ),
    "message of IPv6, checksum": (
        [ip(A6, B6, PROTO_ICMPV6, b"\x80\0\1\2" + _QUERY)], Reason.BAD_CHECKSUM, True,
    ),
    "message, unknown type": ([icmp(A4, B4, 40, _QUERY)], Reason.MALFORMED, True),
    "answer that nobody asked for": ([icmp(A4, B4, 0, _QUERY)], Reason.NO_ENTRY, False),
    "answer of IPv6 that nobody asked for": ([icmp(A6, B6, 129, _QUERY)], Reason.NO_ENTRY, False),
    "error about nothing": (
        [_error(B4, A4, udp(A4, B4, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "error of IPv6 about nothing": (
        [_error(B6, A6, udp(A6, B6, 1, 2))], Reason.ICMP_UNRELATED, False,
    ),
    "error that quotes too little": (
        [udp(A4, B4, 1, 2), _error(B4, A4, udp(A4, B4, 1, 2)[:22])], Reason.ICMP_UNRELATED, False,
    ),
    "error to somebody else": (
        [udp(A4, B4, 1, 2), _error(B4, C4, udp(A4, B4, 1, 2))], Reason.ICMP_MISMATCH, True,
    ),
    "error of IPv6 to somebody else": (
        [udp(A6, B6, 1, 2), _error(B6, C6, udp(A6, B6, 1, 2))], Reason.ICMP_MISMATCH, True,
    ),
    "datagram shorter than its packet, checksum": (
        [ip(A4, B4, 17, udp(A4, B4, 1, 2, b"")[20:] + b"more")], Reason.BAD_CHECKSUM, True,
    ),
    "SCTP of another association": (
        [*_association(A4, B4, 5), sctp(B4, A4, 2, 5, 8, chunk(0, bytes(20)))], Reason.BAD_TAG,
        True,
    ),
    "SCTP of another association, IPv6": (
        [*_association(A6, B6, 5), sctp(B6, A6, 2, 5, 8, chunk(6))], Reason.BAD_TAG, False,
    ),
    "SCTP, INIT with a tag": ([sctp(A4, B4, 6, 2, 8, init(1, 7))], Reason.BAD_TAG, False),
    "SCTP, INIT ACK without its INIT": (
        [*_association(A4, B4, 7), sctp(B4, A4, 2, 7, 7, init(2, 99))], Reason.BAD_TAG, False,
    ),
    "SCTP without an entry": ([sctp(A4, B4, 8, 2, 8, chunk(0))], Reason.NO_ENTRY, False),
    "SCTP that the state forbids": (
        [sctp(A4, B4, 9, 2, 8, chunk(4)), sctp(B4, A4, 2, 9, 0, init(1, 7))],
        Reason.BAD_TRANSITION, True,
    ),
    "SCTP, checksum": (
        [sctp(A4, B4, 10, 2, 0, init(1, 7))[:-1] + b"\7"], Reason.BAD_CHECKSUM, True,
    ),
    "SCTP, header cut": ([ip(A6, B6, 132, bytes(11))], Reason.MALFORMED, True),
    "SCTP, order of chunks": (
        [sctp(A6, B6, 11, 2, 0, init(1, 7), chunk(0))], Reason.MALFORMED, True,
    ),
    "SCTP without a chunk": ([sctp(A4, B4, 12, 2, 0)], Reason.MALFORMED, False),
    "SCTP, INIT cut": ([sctp(A4, B4, 13, 2, 0, init(1, 7)[:12])], Reason.MALFORMED, False),
    "error about SCTP": (
        [_error(B4, A4, sctp(A4, B4, 14, 2, 0, init(1, 7)))], Reason.ICMP_UNRELATED, False,
    ),
    "GRE version 1 without PPP": (
        [ip(A4, B4, 47, b"\0\1\x08\0" + bytes(4))], Reason.MALFORMED, False,
    ),
    "GRE version 1 without PPP, IPv6": (
        [ip(A6, B6, 47, b"\0\1\x08\0" + bytes(4))], Reason.MALFORMED, False,
    ),
    "header of IPv6 that names one more, cut": (
        [ip(A6, B6, 0, b"\x3c\0" + bytes(6))], Reason.MALFORMED, False,
    ),
    "nothing behind the headers of IPv6": ([ip(A6, B6, 59, b"")], Reason.UNSUPPORTED, False),
    "header of IPv6 cut": ([ip(A6, B6, 60, b"\x11\7" + bytes(20))], Reason.MALFORMED, False),
    "later fragment of IPv6 of an odd length": (
        [ip(A6, B6, 44, b"\x11\0\0\x11\0\0\0\7" + bytes(9))], Reason.UNSUPPORTED, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _OTHERS)
def test_other_packets(usual: Guarded, name: str) -> None:
    packets, reason, spoken = _OTHERS[name]
    for octets in packets[:-1]:
        assert usual.judge(octets) == (None, [])
    event, texts = usual.judge(packets[-1])
    assert event is not None
    assert event["reason"] == reason
    if spoken:
        same_words(event, texts)
    else:
        assert texts == []


@pytest.mark.parametrize("size", [50, 1400])
@pytest.mark.parametrize("spoilt", [False, True])
def test_no_reason_depends_on_the_length(usual: Guarded, *, size: int, spoilt: bool) -> None:
    """A segment past the window, with valid and bad checksum, copied in full and truncated."""
    ends = Ends(ports=(41000 + size + spoilt, 80))
    for text in OPEN:
        assert usual.judge(ends.octets(parse(text))) == (None, [])
    octets = ends.octets(parse(f"> P. 900000:{900_000 + size}({size}) ack 1"))
    if spoilt:
        octets = octets[:-1] + bytes([octets[-1] ^ 1])
    event, texts = usual.judge(octets)
    assert event is not None
    assert event["reason"] == ("bad-checksum" if spoilt else "seq-over")
    same_words(event, texts)


def test_no_pickup_in_the_middle(tmp_path: Path) -> None:
    """With nf_conntrack_tcp_loose=0 an ACK without an entry is INVALID, and is not logged."""
    for strict in guarded(Sysctls(loose=False), tmp_path):
        for family in (IPV4, IPV6):
            event, texts = strict.judge(ends_of(family, 1).octets(parse("> . 1:1(0) ack 1")))
            assert event is not None
            assert (event["reason"], texts) == ("no-entry", [])


def test_sysctls_that_change_while_it_runs(tmp_path: Path) -> None:
    """A reason follows the kernel's rules within two seconds, in both directions."""
    picked_up = ends_of(IPV4, 1).octets(parse("> . 1:1(0) ack 1"))
    spoilt = ends_of(IPV4, 2).octets(parse("> F. 1:1(0) ack 1"))
    spoilt = spoilt[:36] + b"\1\2" + spoilt[38:]
    for changing in guarded(DEFAULT_SYSCTLS, tmp_path):
        for name, value, octets, reason in (
            ("tcp_loose", 0, picked_up, "no-entry"),
            ("tcp_loose", 1, picked_up, None),
            ("checksum", 0, spoilt, "no-entry"),
            ("checksum", 1, spoilt, "bad-checksum"),
        ):
            changing.live.space.sysctl(f"netfilter.nf_conntrack_{name}", value)
            time.sleep(2)
            event, _ = changing.judge(octets)
            assert (None if event is None else event["reason"]) == reason


@pytest.mark.parametrize(("zones", "found"), [("[0, 7]", 0), ("[7, 0]", 7)])
def test_zones_in_order(tmp_path: Path, zones: str, found: int) -> None:
    """A flow in a zone, and one with the same tuple but another window in zone 0.

    A packet does not carry its zone: the first zone of the setting with an entry counts.
    """
    for both in guarded(DEFAULT_SYSCTLS, tmp_path, zones):
        for family, program in ((IPV4, "iptables"), (IPV6, "ip6tables")):
            ends = ends_of(family, 1)
            elsewhere = (9_000_000, 13_000_000)
            for line in OPEN:
                assert both.judge(ends.octets(parse(line, elsewhere))) == (None, [])
            both.live.space.run(program, *_IN_ZONE)
            for line in OPEN:
                assert both.judge(ends.octets(parse(line))) == (None, [])
            octets = ends.octets(parse("< P. 300000:300001(1) ack 101 win 512"))
            event, (text,) = both.judge(octets)
            assert event is not None
            assert reason_of(text) == "seq-over"
            # In zone 0 the same numbers are below the window, and such segments are not INVALID.
            assert event["reason"] == ("seq-over" if found == 7 else "raced"), event
            other = FlowTuple(PROTO_TCP, *ends.addresses, *ends.ports)
            assert both.live.snapshot(other) is not None


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_a_window_that_has_started_over(family: int) -> None:
    """As after a flow has left a flowtable (kernel.md 2): no window, and the old `td_maxack`.

    This kernel has no flowtables. The windows of all flows are also reset when the first rule that
    needs conntrack is loaded again; tests on Debian's kernels use a flowtable.
    """
    program = "iptables" if family == IPV4 else "ip6tables"
    ends = ends_of(family, 1)
    way = FlowTuple(PROTO_TCP, *ends.addresses, *ends.ports)
    with LiveConntrack(DEFAULT_SYSCTLS) as live:
        for line in OPEN:
            live.send(ends.octets(parse(line)))
        rules = live.space.run(f"{program}-save", "-t", "mangle").stdout

        def has_started_over() -> bool:
            live.space.run(program, "-t", "mangle", "-F")
            live.space.run(f"{program}-restore", stdin=rules)
            found = live.snapshot(way)
            assert found is not None
            assert found.peers is not None
            return [peer.td_maxwin for peer in found.peers] == [0, 0]

        wait_for(has_started_over)
        # While its rules were gone the kernel may have sent packets of its own.
        live.drain()
        # An RST below what was acknowledged is checked against the old `td_maxack`.
        octets = ends.octets(parse("> R. 1:1(0) ack 201 win 0"))
        seen = live.judge(octets)
        assert seen.ctstate is not None
        assert CTSTATES[seen.ctstate] is CtState.INVALID
        queued = Queued(octets, Hook.PREROUTING, "in0", "", 0, CHECKSUM_GOOD)
        kernel = guess_rules(platform.release()).rules
        found = diagnose(
            queued, decode(octets), live.snapshot(way), Evidence.BPF, kernel, DEFAULT_SYSCTLS
        )
        assert found.reason is Reason.RST_OUTSIDE
        assert [reason_of(text) for text in seen.texts] == [Reason.RST_OUTSIDE]
        assert found.breach is not None
        assert found.breach.distance == 100
        # Data beyond the old window initialises the new one.
        passed = live.judge(ends.octets(parse("< P. 300000:300001(1) ack 101 win 512")))
        assert passed.ctstate is not None
        assert CTSTATES[passed.ctstate] is CtState.ESTABLISHED
        assert passed.texts == ()


_IN_ZONE = ("-t", "raw", "-A", "PREROUTING", "-j", "CT", "--zone", "7")
_D4, _D6 = b"\x0a\x04\0\1", bytes.fromhex("fd00") + bytes(11) + b"\x04\0\1"


class Service:
    """A service: address D, port 80 is translated to B, port 8080, for client A."""

    def __init__(self, guarded: Guarded, family: int, port: int) -> None:
        six = family == IPV6
        self._guarded = guarded
        self.client, self.pod, self.address = (A6, B6, _D6) if six else (A4, B4, _D4)
        target = f"[{address(self.pod)}]:8080" if six else f"{address(self.pod)}:8080"
        words = ("-t", "nat", "-A", "PREROUTING", "-d", f"{address(self.address)}")
        guarded.live.space.run(
            "ip6tables" if six else "iptables", *words,
            *("-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", target),
        )  # fmt: skip
        self.front = Ends(family, (self.client, self.address), (port, 80))
        self.back = Ends(family, (self.client, self.pod), (port, 8080))
        for line in OPEN:
            ends = self.front if line.startswith(">") else self.back
            assert guarded.judge(ends.octets(parse(line))) == (None, [])

    def too_big(self, dst: bytes, quoted: bytes) -> bytes:
        """A router's path MTU error to `dst`."""
        six = len(dst) == 16
        router = C6 if six else C4
        return icmp(router, dst, 2 if six else 3, b"\0\0\5\x14" + quoted, 0 if six else 4)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_packets_about_a_translated_flow(usual: Guarded, family: int) -> None:
    """INVALID packets of a service's flow, and the decisions of the default policy."""
    service = Service(usual, family, 42_000)
    reply = service.back.octets(parse("< P. 300000:300001(1) ack 101 win 512"))
    event, _ = usual.judge(reply)
    assert event is not None
    # It is dropped, as the client would answer it with an RST to the pod's own address.
    assert (event["reason"], event["nat"], event["would"]) == ("seq-over", "dnat", "drop")
    # That RST itself: no entry exists for the client and the pod's address and port. It looks like
    # one of a client that talks to the pod directly, and is allowed.
    event, _ = usual.judge(service.back.octets(parse("> R 101:101(0)")))
    assert event is not None
    assert (event["reason"], event["nat"], event["would"]) == ("no-entry", "unknown", "accept")
    # An error about a reply that left untranslated has no entry either. The pod needs it.
    event, _ = usual.judge(service.too_big(service.pod, reply))
    assert event is not None
    assert (event["reason"], event["nat"], event["would"]) == (
        "icmp-unrelated",
        "unknown",
        "accept",
    )
    # An error about a translated reply is translated itself; it is not INVALID.
    assert usual.judge(
        service.too_big(service.address, service.front.octets(parse("< P. 201:301(100) ack 101")))
    ) == (None, [])
    assert service.pod in usual.out[:40]
