# SPDX-License-Identifier: MIT
"""The reason from the kernel's log text about a packet, or from the lack of one."""

from collections.abc import Sequence

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from nfq_guard.conntrack.details import OTHER_ADDRESSES
from nfq_guard.conntrack.kernel_rules import KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KernelRules
from nfq_guard.conntrack.log_text import Logged, parse_log
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.diagnose import diagnose_logged
from nfq_guard.engine import Engine, Mode
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_SACK_PERM,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    LookupFailed,
    LookupResult,
    TcpState,
)
from nfq_guard.policy.default import default_policy
from nfq_guard.seqno import seq
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, CHECKSUM_UNVERIFIED, Queued
from tests.support.octets import octets_of
from tests.support.packets import A4, B4, error, icmp, ip, tcp, udp
from tests.support.segments import ACK, SYN, tcp_ipv4

FIN, RST = 0x01, 0x04
SILENT = frozenset({Reason.ICMP_UNRELATED, Reason.NO_ENTRY})
# Of kernels that log a segment that may not open a flow.
SILENT_6_12 = frozenset({Reason.ICMP_UNRELATED})
UNPROVEN: frozenset[Reason] = frozenset()
ONLY_SILENT = "the only reason that the kernel does not log"
SACK_300 = bytes((1, 1, 5, 10)) + (250).to_bytes(4, "big") + (300).to_bytes(4, "big")


def entry(
    state: TcpState = TcpState.ESTABLISHED,
    flags: tuple[int, int] | None = (0, 0),
    direction: int = 0,
) -> FlowSnapshot:
    """An entry without a window, as ctnetlink has it."""
    there, back = FlowTuple(6, A4, B4, 1000, 80), FlowTuple(6, B4, A4, 80, 1000)
    return FlowSnapshot(
        Evidence.CTNETLINK, direction, there, back, 0, 0, 0, 9, int(state), None, peer_flags=flags
    )


def segment(
    flags: int, number: int = 0, ack: int = 0, size: int = 0, options: bytes = b""
) -> bytes:
    octets = tcp_ipv4("10.1.0.1", "10.2.0.1", 1000, 80, number, ack, flags, bytes(size))
    if options:
        head, body = octets[:20], octets[20:40] + options
        body = body[:12] + bytes(((5 + len(options) // 4) << 4,)) + body[13:]
        octets = head[:2] + (20 + len(body)).to_bytes(2, "big") + head[4:] + body
    return octets


def finding(
    octets: bytes,
    text: str | None,
    snapshot: FlowSnapshot | None = None,
    *,
    kernel: KernelRules = KERNEL_6_1,
    silent: frozenset[Reason] = SILENT_6_12,
    sysctls: Sysctls = DEFAULT_SYSCTLS,
    evidence: Evidence = Evidence.CTNETLINK,
    checksum: int = CHECKSUM_GOOD,
) -> Finding:
    logged = None
    if text is not None:
        logged = parse_log(f"nf_ct_proto_6: {text} ", old_segments_pass=kernel.old_segments_pass)
        assert logged is not None
    queued = Queued(octets, 0, "eth0", "", 0, checksum)
    return diagnose_logged(
        queued, decode(octets), snapshot, evidence, kernel, sysctls, logged, lambda: silent
    )


def test_a_bound_and_its_number() -> None:
    found = finding(segment(ACK, 5000, 1), "SEQ is over upper bound 4001", entry())
    assert found == Finding(Reason.SEQ_OVER, Breach(Reason.SEQ_OVER, seq(5000), seq(4000), 1000))
    found = finding(segment(ACK, 0, 1), "SEQ is over upper bound 4294967293", entry())
    assert found.breach == Breach(Reason.SEQ_OVER, seq(0), seq(4294967292), 4)


@pytest.mark.parametrize(
    ("ack", "flags", "actual"),
    [
        (200, (0, 0), 200),
        # SACK counts if the receiver of the segment permitted it.
        (200, (IP_CT_TCP_FLAG_SACK_PERM, 0), 200),
        (200, (0, IP_CT_TCP_FLAG_SACK_PERM), 300),
        (50, (0, IP_CT_TCP_FLAG_SACK_PERM), 300),
        # Without flags what broke the bound tells, unless both did.
        (50, None, 300),
        (200, None, 200),
    ],
)
def test_what_counts_as_acknowledged(ack: int, flags: tuple[int, int] | None, actual: int) -> None:
    octets = segment(ACK, 1, ack, options=SACK_300)
    found = finding(octets, "ACK is over upper bound 101", entry(flags=flags))
    assert found.breach == Breach(Reason.ACK_OVER, seq(actual), seq(100), actual - 100)


def test_an_entry_that_is_gone() -> None:
    found = finding(segment(ACK, 1, 200), "ACK is over upper bound 101")
    assert found.breach == Breach(Reason.ACK_OVER, seq(200), seq(100), 100)
    # Of an RST with number 0 it is not known whether the kernel took `td_end` for it.
    assert finding(segment(RST, 0), "SEQ is over upper bound 7") == Finding(Reason.SEQ_OVER)


def test_numbers_that_are_not_in_the_packet() -> None:
    """An RST with number 0 in SYN_SENT; a flow whose numbers a helper shifts."""
    opening = entry(TcpState.SYN_SENT)
    assert finding(segment(RST, 0), "SEQ is over upper bound 7", opening).breach is None
    assert finding(segment(RST, 9), "SEQ is over upper bound 7", opening).breach is not None
    assert finding(segment(ACK, 6), "SEQ is over upper bound 7", entry()).breach is None


def test_how_far_a_segment_reaches() -> None:
    """Kernels before 6.1 call it INVALID, and print by how much it is too long."""
    found = finding(
        segment(ACK, 1000, 1, 100), "51 bytes more than expected", entry(), kernel=KERNEL_5_15
    )
    # The segment ends at 1100, so `td_maxend` is 1050: its number is within it.
    assert found == Finding(Reason.SEQ_OVER)
    found = finding(
        segment(ACK, 1000, 1, 100), "151 bytes more than expected", entry(), kernel=KERNEL_5_15
    )
    assert found.breach == Breach(Reason.SEQ_OVER, seq(1000), seq(950), 50)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SEQ is over the upper bound (over the window of the receiver)", Reason.SEQ_OVER),
        ("SEQ is under the lower bound (already ACKed data retransmitted)", Reason.SEQ_UNDER),
        ("ACK is over the upper bound (ACKed data not seen yet)", Reason.ACK_OVER),
        ("ACK is under the lower bound (possible overly delayed ACK)", Reason.ACK_UNDER),
        ("invalid rst", Reason.RST_OUTSIDE),
    ],
)
def test_a_bound_without_a_number(text: str, reason: Reason) -> None:
    found = finding(segment(ACK, 1, 1), text, entry(), kernel=KERNEL_5_10)
    assert found == Finding(reason)


def test_a_bound_of_a_packet_that_cannot_be_read() -> None:
    cut = segment(ACK, 1, 1)[:30]
    assert finding(cut, "SEQ is over upper bound 7").reason is Reason.SEQ_OVER
    # Numbers that no bound of the kernel's has in its text.
    assert Finding(Reason.RST_OUTSIDE) == diagnose_logged(
        Queued(segment(RST, 1), 0, "", "", 0, CHECKSUM_GOOD), decode(segment(RST, 1)), None,
        Evidence.CTNETLINK, KERNEL_6_1, DEFAULT_SYSCTLS, Logged(Reason.RST_OUTSIDE, seq(7)),
        lambda: SILENT,
    )  # fmt: skip


def test_the_state_is_the_one_that_the_kernel_saw() -> None:
    text = "packet (index 1) in dir 0 invalid, state SYN_SENT"
    found = finding(segment(SYN | ACK, 1, 1), text, entry())
    assert found == Finding(Reason.BAD_TRANSITION, None, "original syn+ack in SYN_SENT")
    found = finding(segment(SYN | ACK, 1, 1), "invalid state", entry(), kernel=KERNEL_5_10)
    assert found == Finding(Reason.BAD_TRANSITION, None, "original syn+ack in ESTABLISHED")


def test_other_texts() -> None:
    """Our own detail is kept if the reason is the same."""
    assert finding(segment(FIN | ACK), "invalid new").detail == "fin without an entry"
    assert finding(segment(FIN | ACK), "invalid new", entry()) == Finding(Reason.NO_ENTRY)
    assert finding(segment(ACK), "truncated packet") == Finding(Reason.MALFORMED)
    # The lookup failed, the log did not.
    found = finding(segment(ACK, 9), "SEQ is over upper bound 7", evidence=Evidence.NONE)
    assert found.reason is Reason.SEQ_OVER


def test_a_text_that_says_too_little() -> None:
    found = finding(segment(ACK, 9), "SEQ is over", entry())
    assert found == Finding(Reason.UNSUPPORTED, None, "the flow is known, its window is not")


def test_silence_proves_the_only_silent_cause() -> None:
    """The entry was made later: with one there would be a text."""
    alone = Finding(Reason.NO_ENTRY, None, ONLY_SILENT)
    for flags in (RST, FIN | ACK, SYN | ACK):
        state = TcpState.SYN_RECV if flags == SYN | ACK else TcpState.ESTABLISHED
        assert finding(segment(flags), None, entry(state), silent=SILENT) == alone
    strict = Sysctls(loose=False)
    assert finding(segment(ACK), None, entry(), sysctls=strict) == alone
    quoted = error(A4, B4, 3, tcp(B4, A4, 1, 2, ACK))
    assert finding(quoted, None, entry()) == Finding(Reason.ICMP_UNRELATED, None, ONLY_SILENT)
    assert finding(icmp(A4, B4, 0, bytes(12)), None, entry()) == alone


def test_silence_that_proves_nothing() -> None:
    lacking = "the flow is known; the kernel's log of the packet was not found"
    nothing = Finding(Reason.UNSUPPORTED, None, lacking)
    assert finding(segment(RST), None, entry(), silent=UNPROVEN) == nothing
    assert finding(segment(RST), None, entry(), silent=SILENT_6_12) == nothing
    assert finding(segment(ACK), None, entry(), silent=SILENT) == nothing
    opening = entry(TcpState.SYN_SENT)
    assert finding(segment(SYN), None, opening, silent=SILENT) == nothing
    for octets in (udp(A4, B4, 1, 2), icmp(A4, B4, 8, bytes(12)), segment(ACK)):
        assert finding(octets, None, silent=SILENT).reason is Reason.RACED
    assert finding(segment(RST), None).detail == "rst without an entry"


def test_what_the_packet_itself_shows_needs_no_text() -> None:
    assert finding(segment(SYN | FIN), None, entry()).reason is Reason.BAD_FLAGS
    assert finding(ip(A4, B4, 6, bytes(19)), None).reason is Reason.MALFORMED


class Table:
    """Gives one answer after the other, each to one lookup."""

    evidence = Evidence.CTNETLINK

    def __init__(self, *results: LookupResult) -> None:
        self.results = results

    def lookup(self, tuples: Sequence[FlowTuple]) -> Sequence[LookupResult]:
        assert len(tuples) == len(self.results)
        return self.results


class Texts:
    """A log that has these texts, whatever the packets."""

    def __init__(self, *texts: Logged | None) -> None:
        self._texts = texts

    def texts(self, batch: Sequence[Queued]) -> Sequence[Logged | None]:
        assert len(batch) == len(self._texts)
        return self._texts

    def silent(self) -> frozenset[Reason]:
        return SILENT


def test_a_batch_with_a_log() -> None:
    octets = segment(ACK, 9, 1)
    batch = [Queued(octets, 0, "eth0", "", 0, CHECKSUM_GOOD) for _ in range(4)]
    over = Logged(Reason.SEQ_OVER, seq(7))
    engine = Engine(
        policy=default_policy(),
        flows=Table(entry(), entry(), LookupFailed(1), entry()),
        log=Texts(over, None, over, Logged(None)),
        mode=Mode.ENFORCE,
    )
    judged = engine.judge(batch, now=0.0)
    over_, nothing = Reason.SEQ_OVER, Reason.UNSUPPORTED
    assert [one.finding.reason for one in judged] == [over_, nothing, over_, nothing]
    evidence = [None if one.snapshot is None else one.snapshot.evidence for one in judged]
    assert evidence == [Evidence.KERNEL_LOG, Evidence.CTNETLINK, None, Evidence.CTNETLINK]
    assert [one.lookup_error for one in judged] == [0, 0, 1, 0]
    assert engine.lookup_errors == 1


def test_evidence_is_switched_between_batches() -> None:
    batch = [Queued(segment(ACK, 9, 1), 0, "eth0", "", 0, CHECKSUM_GOOD)]
    engine = Engine(policy=default_policy(), flows=Table(entry()), mode=Mode.ENFORCE)
    assert engine.judge(batch, now=0.0)[0].finding.reason is Reason.UNSUPPORTED
    engine.look_up_in(Table(entry()), Texts(Logged(Reason.SEQ_OVER, seq(7))))
    assert engine.judge(batch, now=0.0)[0].finding.reason is Reason.SEQ_OVER
    engine.look_up_in(Table(entry()), None)
    assert engine.judge(batch, now=0.0)[0].finding.reason is Reason.UNSUPPORTED


def test_a_checksum_that_conntrack_computes_wrongly() -> None:
    """It calls correct packets of UDP-Lite damaged; the default policy drops damaged packets."""
    correct = ip(A4, B4, 136, bytes.fromhex("03e800020000") + b"\x41\xb5" + b"abcd")
    assert finding(correct, "bad checksum").reason is Reason.UNSUPPORTED
    assert finding(correct, "invalid checksum coverage").reason is Reason.MALFORMED
    assert finding(segment(ACK, 1, 1), "bad checksum") == Finding(Reason.BAD_CHECKSUM)
    plain = octets_of(IPv6(src="fd91::2", dst="fd92::3") / TCP(flags="FA"))
    route = bytes((6, 2, 2, 1, 0, 0, 0, 0)) + plain[24:40]
    routed = octets_of(IPv6(src="fd91::2", dst="fd92::2", nh=43) / Raw(route + plain[40:]))
    wrong = finding(routed, "bad checksum", checksum=CHECKSUM_UNVERIFIED)
    assert (wrong.reason, wrong.detail) == (Reason.UNSUPPORTED, OTHER_ADDRESSES)
