# SPDX-License-Identifier: MIT
"""Findings: the right reason, in the kernel's order, with the number that proves it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from nfq_guard.conntrack.details import OTHER_ADDRESSES, SHIFTED
from nfq_guard.conntrack.kernel_rules import KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KernelRules
from nfq_guard.conntrack.states import CLASS_RST, CLASS_SYN
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.diagnose import detail_of, diagnose
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_MAXACK_SET,
    IP_CT_TCP_FLAG_SACK_PERM,
    IPS_ASSURED,
    IPS_DST_NAT,
    IPS_SEQ_ADJUST,
    IPS_SRC_NAT,
    IPV4,
    IPV6,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    Nat,
    Peer,
    TcpState,
)
from nfq_guard.names import address_bytes
from nfq_guard.seqno import Seq, seq
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import (
    ACK,
    CHECKSUM_GOOD,
    CHECKSUM_UNVERIFIED,
    FIN,
    RST,
    SYN,
    URG,
    Datagram,
    IcmpMessage,
    Malformed,
    Packet,
    Queued,
    Segment,
)
from tests.support.octets import octets_of

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
ORIGINAL = FlowTuple(PROTO_TCP, A, B, 1000, 80)
REPLY = FlowTuple(PROTO_TCP, B, A, 80, 1000)
QUEUED = Queued(b"", Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)

# The client has sent up to 1000 and may send up to 3000; the server up to 5000 and 9000.
CLIENT_END, CLIENT_MAXEND, CLIENT_MAXWIN = 1000, 3000, 4000
SERVER_END, SERVER_MAXEND, SERVER_MAXWIN = 5000, 9000, 2000
SHIFTS = pytest.mark.parametrize("shift", [0, 2**31 - 4000, 2**32 - 4000])


def flow(
    *,
    shift: int = 0,
    direction: int = 0,
    state: TcpState = TcpState.ESTABLISHED,
    status: int = IPS_ASSURED,
    client_flags: int = 0,
    server_flags: int = 0,
    last_index: int = 3,
    window: bool = True,
) -> FlowSnapshot:
    client = Peer(
        seq(CLIENT_END + shift),
        seq(CLIENT_MAXEND + shift),
        CLIENT_MAXWIN,
        seq(SERVER_END - 500 + shift),
        0,
        client_flags,
    )
    server = Peer(
        seq(SERVER_END + shift),
        seq(SERVER_MAXEND + shift),
        SERVER_MAXWIN,
        seq(CLIENT_END - 300 + shift),
        0,
        server_flags,
    )
    return FlowSnapshot(
        Evidence.BPF if window else Evidence.CTNETLINK,
        direction,
        ORIGINAL,
        REPLY,
        status,
        0,
        0,
        100,
        int(state),
        (client, server) if window else None,
        last_index=last_index,
    )


def tcp(
    flags: int,
    number: int = 0,
    ack: int = 0,
    size: int = 0,
    *,
    shift: int = 0,
    options: bytes = b"",
) -> Packet:
    segment = Segment(
        1000,
        80,
        seq(number + shift),
        seq(ack + shift) if flags & ACK else Seq(0),
        flags,
        512,
        size,
        options,
        0,
    )
    return Packet(IPV4, A, B, PROTO_TCP, 40 + len(options) + size, 20, 64, 0, False, segment)


def finding(
    packet: Packet | Malformed,
    snapshot: FlowSnapshot | None = None,
    *,
    queued: Queued = QUEUED,
    evidence: Evidence = Evidence.BPF,
    kernel: KernelRules = KERNEL_6_1,
    sysctls: Sysctls = DEFAULT_SYSCTLS,
) -> Finding:
    return diagnose(queued, packet, snapshot, evidence, kernel, sysctls)


@SHIFTS
def test_seq_over(shift: int) -> None:
    """Past td_maxend by more than a receiver window: INVALID, by 2001 bytes here."""
    # Up to one receiver window above is an overshoot, which passes.
    packet = tcp(ACK, CLIENT_MAXEND + SERVER_MAXWIN - 1, SERVER_END, shift=shift)
    assert finding(packet, flow(shift=shift)).reason is Reason.RACED
    packet = tcp(ACK, CLIENT_MAXEND + SERVER_MAXWIN, SERVER_END, shift=shift)
    assert finding(packet, flow(shift=shift)) == Finding(
        Reason.SEQ_OVER,
        Breach(
            Reason.SEQ_OVER,
            seq(CLIENT_MAXEND + SERVER_MAXWIN + shift),
            seq(CLIENT_MAXEND + shift),
            SERVER_MAXWIN,
        ),
    )


@SHIFTS
def test_ack_over(shift: int) -> None:
    packet = tcp(ACK, CLIENT_END, SERVER_END, shift=shift)
    assert finding(packet, flow(shift=shift)).reason is Reason.RACED
    packet = tcp(ACK, CLIENT_END, SERVER_END + 1, shift=shift)
    assert finding(packet, flow(shift=shift)).breach == Breach(
        Reason.ACK_OVER, seq(SERVER_END + 1 + shift), seq(SERVER_END + shift), 1
    )


def test_a_shift_that_could_not_be_read() -> None:
    """The bounds of acknowledgements are of a number that only the kernel knows."""
    shifted = flow(status=IPS_ASSURED | IPS_SEQ_ADJUST)
    for sent, bound in (
        (tcp(ACK, CLIENT_END, SERVER_END + 7), Reason.ACK_OVER),
        (tcp(ACK, CLIENT_END, SERVER_END), Reason.UNSUPPORTED),
        (tcp(ACK, CLIENT_MAXEND + SERVER_MAXWIN, SERVER_END), Reason.SEQ_OVER),
    ):
        plain, found = finding(sent, flow()), finding(sent, shifted)
        assert found.reason is bound
        assert found.breach == (plain.breach if bound is Reason.SEQ_OVER else None)
        assert found.detail == (plain.detail if bound is Reason.SEQ_OVER else SHIFTED)


@SHIFTS
def test_ack_over_by_a_sack_block(shift: int) -> None:
    """A SACK block counts only if the other side permitted SACK."""
    left, right = seq(SERVER_END + shift), seq(SERVER_END + 7 + shift)
    options = b"\x01\x01\x05\x0a" + left.to_bytes(4, "big") + right.to_bytes(4, "big")
    packet = tcp(ACK, CLIENT_END, SERVER_END, shift=shift, options=options)
    assert finding(packet, flow(shift=shift)).reason is Reason.RACED
    found = finding(packet, flow(shift=shift, server_flags=IP_CT_TCP_FLAG_SACK_PERM))
    assert found.breach == Breach(Reason.ACK_OVER, right, seq(SERVER_END + shift), 7)


@SHIFTS
def test_old_segments_are_invalid_only_on_old_kernels(shift: int) -> None:
    """The late retransmission of Kubernetes #74839."""
    lowest = CLIENT_END - SERVER_MAXWIN
    packet = tcp(ACK, lowest - 101, SERVER_END, 100, shift=shift)
    assert finding(packet, flow(shift=shift)).reason is Reason.RACED
    for kernel in (KERNEL_5_10, KERNEL_5_15):
        assert finding(packet, flow(shift=shift), kernel=kernel) == Finding(
            Reason.SEQ_UNDER,
            Breach(Reason.SEQ_UNDER, seq(lowest - 1 + shift), seq(lowest + shift), 1),
        )
        on_bound = tcp(ACK, lowest - 100, SERVER_END, 100, shift=shift)
        assert finding(on_bound, flow(shift=shift), kernel=kernel).reason is Reason.RACED


@SHIFTS
def test_late_acknowledgement_is_invalid_only_on_old_kernels(shift: int) -> None:
    lowest = SERVER_END - 66_000
    packet = tcp(ACK, CLIENT_END, lowest - 1, shift=shift)
    assert finding(packet, flow(shift=shift)).reason is Reason.RACED
    assert finding(packet, flow(shift=shift), kernel=KERNEL_5_10) == Finding(
        Reason.ACK_UNDER, Breach(Reason.ACK_UNDER, seq(lowest - 1 + shift), seq(lowest + shift), 1)
    )


def test_overshoot_is_seq_over_on_old_kernels() -> None:
    packet = tcp(ACK, CLIENT_MAXEND + 1, SERVER_END)
    assert finding(packet, flow(), kernel=KERNEL_5_15).reason is Reason.SEQ_OVER


def test_order_of_the_bounds() -> None:
    """With several bounds broken the kernel names the first in its own order."""
    both = tcp(ACK, CLIENT_END - 9000, SERVER_END + 1)
    assert finding(both, flow()).reason is Reason.ACK_OVER
    assert finding(both, flow(), kernel=KERNEL_5_10).reason is Reason.SEQ_UNDER
    ack_only = tcp(ACK, CLIENT_END, SERVER_END + 1)
    assert finding(ack_only, flow(), kernel=KERNEL_5_10).reason is Reason.ACK_OVER
    seq_first = tcp(ACK, CLIENT_MAXEND + 9000, SERVER_END + 1)
    assert finding(seq_first, flow()).reason is Reason.SEQ_OVER


@SHIFTS
def test_rst_outside(shift: int) -> None:
    """An RST below what the other side has acknowledged (RFC 5961)."""
    known = flow(shift=shift, server_flags=IP_CT_TCP_FLAG_MAXACK_SET)
    maxack = CLIENT_END - 300
    assert finding(tcp(RST, maxack - 1, shift=shift), known) == Finding(
        Reason.RST_OUTSIDE,
        Breach(Reason.RST_OUTSIDE, seq(maxack - 1 + shift), seq(maxack + shift), 1),
    )
    assert finding(tcp(RST, maxack, shift=shift), known).reason is Reason.RACED
    assert finding(tcp(RST, maxack - 1, shift=shift), flow(shift=shift)).reason is Reason.RACED


def test_rst_after_an_ignored_syn() -> None:
    known = flow(server_flags=IP_CT_TCP_FLAG_MAXACK_SET, last_index=CLASS_SYN)
    packet = tcp(RST, 600)
    assert finding(packet, known).reason is Reason.RACED
    assert finding(packet, known, kernel=KERNEL_5_10).reason is Reason.RST_OUTSIDE


def test_rst_that_may_have_come_after_an_ignored_syn() -> None:
    """It breaks its own bound and one of the window, and has replaced the SYN in the entry."""

    def details(packet: Packet, kernel: KernelRules = KERNEL_6_1, **last: int) -> str:
        known = flow(server_flags=IP_CT_TCP_FLAG_MAXACK_SET, last_index=CLASS_RST)
        known.last_seq, known.last_end = seq(700), seq(last.get("end", 701))
        known.last_index = last.get("index", CLASS_RST)
        found = finding(packet, known, kernel=kernel)
        assert found.reason is Reason.RST_OUTSIDE
        assert found.breach is not None
        return found.detail

    both = tcp(RST | ACK, 600, ack=SERVER_END + 1)
    assert details(both) == "or ack-over, if the segment before it was a SYN that conntrack ignored"
    # Within its window it would have passed after a SYN.
    assert details(tcp(RST, 600)) == ""
    # Nor was it a SYN: that is still there, or has an end of its own.
    assert details(both, index=3) == details(both, end=700) == ""
    assert details(both, KERNEL_5_10) == ""


def test_rst_where_the_sysctl_lets_any_through() -> None:
    """Kernel 5.10 does not have the sysctl."""
    known = flow(server_flags=IP_CT_TCP_FLAG_MAXACK_SET)
    sysctls = Sysctls(ignore_invalid_rst=True)
    assert finding(tcp(RST, 600), known, sysctls=sysctls).reason is Reason.RACED
    old = finding(tcp(RST, 600), known, sysctls=sysctls, kernel=KERNEL_5_10)
    assert old.reason is Reason.RST_OUTSIDE


def test_rst_with_sequence_zero() -> None:
    """From 5.15 on, seq 0 breaks the bound of an RST only in an assured, established flow."""
    packet = tcp(RST, 0)
    known = flow(server_flags=IP_CT_TCP_FLAG_MAXACK_SET)
    assert finding(packet, known).reason is Reason.RST_OUTSIDE
    young = flow(server_flags=IP_CT_TCP_FLAG_MAXACK_SET, status=0)
    assert finding(packet, young).reason is Reason.RACED
    assert finding(packet, young, kernel=KERNEL_5_10).reason is Reason.RST_OUTSIDE


def test_any_rst_closes_a_closing_flow() -> None:
    closing = flow(server_flags=IP_CT_TCP_FLAG_MAXACK_SET, state=TcpState.FIN_WAIT)
    packet = tcp(RST, CLIENT_MAXEND + 90_000)
    assert finding(packet, closing).reason is Reason.RACED
    assert finding(packet, closing, kernel=KERNEL_5_10).reason is Reason.SEQ_OVER


def test_rst_answering_a_syn_has_no_number_to_check() -> None:
    packet = tcp(RST | ACK, 0, 0)
    waiting = flow(state=TcpState.SYN_SENT, direction=1)
    assert finding(packet, waiting).reason is Reason.RACED


def test_bad_transition() -> None:
    packet = tcp(SYN | ACK)
    assert finding(packet, flow()) == Finding(
        Reason.BAD_TRANSITION, None, "original syn+ack in ESTABLISHED"
    )
    packet = tcp(ACK)
    assert finding(packet, flow(state=TcpState.SYN_SENT)).detail == "original ack in SYN_SENT"


def test_without_a_window_only_the_table_speaks() -> None:
    known = flow(window=False)
    ctnetlink = Evidence.CTNETLINK
    assert finding(tcp(ACK, 1), known, evidence=ctnetlink).reason is Reason.UNSUPPORTED
    assert finding(tcp(SYN | ACK), known, evidence=ctnetlink).reason is Reason.BAD_TRANSITION


@pytest.mark.parametrize(
    ("flags", "loose", "reason"),
    [
        (FIN | ACK, True, Reason.NO_ENTRY),
        (RST, True, Reason.NO_ENTRY),
        (SYN | ACK, True, Reason.NO_ENTRY),
        (ACK, False, Reason.NO_ENTRY),
        (ACK, True, Reason.RACED),
        (SYN, False, Reason.RACED),
    ],
)
def test_without_an_entry(flags: int, loose: bool, reason: Reason) -> None:
    """A packet that would have opened an entry must have had one when the kernel judged it."""
    assert finding(tcp(flags), sysctls=Sysctls(loose=loose)).reason is reason


@pytest.mark.parametrize("flags", [0, FIN, URG, SYN | FIN, SYN | RST, RST | FIN, 0xFF])
def test_bad_flags(flags: int) -> None:
    assert finding(tcp(flags), flow()).reason is Reason.BAD_FLAGS


def test_nothing_can_be_looked_up() -> None:
    nothing = Evidence.NONE
    assert finding(tcp(ACK), evidence=nothing).reason is Reason.UNSUPPORTED
    assert finding(tcp(SYN | FIN), evidence=nothing).reason is Reason.BAD_FLAGS
    assert finding(udp(), evidence=nothing).reason is Reason.UNSUPPORTED


def test_malformed() -> None:
    assert finding(Malformed("no octets")) == Finding(Reason.MALFORMED, None, "no octets")
    assert finding(Malformed("cut", snapped=True)).reason is Reason.UNSUPPORTED


def udp() -> Packet:
    return Packet(IPV4, A, B, PROTO_UDP, 28, 20, 64, 0, False, Datagram(53, 99, 8, 1))


def test_checksum_counts_only_where_conntrack_checks_it() -> None:
    octets = bytes(40)
    unverified = Queued(octets, Hook.PREROUTING, "eth0", "", 0, CHECKSUM_UNVERIFIED)
    assert finding(tcp(ACK), flow(), queued=unverified).reason is Reason.BAD_CHECKSUM
    local = Queued(octets, Hook.OUTPUT, "", "eth0", 0, CHECKSUM_UNVERIFIED)
    assert finding(tcp(SYN | ACK), flow(), queued=local).reason is Reason.BAD_TRANSITION


@pytest.mark.parametrize("cut", [0, 20])
def test_checksum_that_only_conntrack_finds_wrong(cut: int) -> None:
    """Of a packet with a routing header, whose checksum covers the final destination."""
    final = octets_of(IPv6(src="fd91::2", dst="fd92::3") / TCP(flags="FA") / bytes(20))
    route = bytes((6, 2, 2, 1, 0, 0, 0, 0)) + final[24:40]
    octets = octets_of(IPv6(src="fd91::2", dst="fd92::2", nh=43) / Raw(route + final[40:]))
    packet = decode(octets)
    unverified = Queued(
        octets[: len(octets) - cut], Hook.PREROUTING, "eth0", "", 0, CHECKSUM_UNVERIFIED
    )
    found = finding(packet, queued=unverified)
    assert (found.reason, found.detail) == (Reason.UNSUPPORTED, OTHER_ADDRESSES)
    damaged = replace(unverified, octets=octets[:-1] + b"!")
    assert finding(packet, queued=damaged).reason is Reason.BAD_CHECKSUM


def test_udp_has_no_window() -> None:
    assert finding(udp()).reason is Reason.RACED


@pytest.mark.parametrize(("fragment", "detail"), [(8, "fragment"), (0, "protocol")])
def test_unsupported(fragment: int, detail: str) -> None:
    packet = Packet(IPV4, A, B, 50, 28, 20, 64, fragment, False, None)
    found = finding(packet)
    assert found.reason is Reason.UNSUPPORTED
    assert found.detail.startswith(detail)


def icmp(
    kind: int, *, error: bool = False, quoted: FlowTuple | None = None, family: int = IPV4
) -> Packet:
    message = IcmpMessage(kind, 0, 0, 0, error, quoted)
    proto = PROTO_ICMP if family == IPV4 else PROTO_ICMPV6
    return Packet(family, A, B, proto, 28, 20, 64, 0, False, message)


def test_icmp_errors() -> None:
    assert finding(icmp(3, error=True)).reason is Reason.ICMP_UNRELATED
    quoting_b = FlowTuple(PROTO_TCP, B, A, 80, 1000)
    assert finding(icmp(3, error=True, quoted=quoting_b)).reason is Reason.ICMP_UNRELATED
    raced = finding(icmp(3, error=True, quoted=quoting_b), flow())
    assert (raced.reason, raced.detail) == (Reason.RACED, "quotes a flow that has an entry by now")
    quoting_a = FlowTuple(PROTO_TCP, A, B, 1000, 80)
    found = finding(icmp(3, error=True, quoted=quoting_a), flow())
    assert found.reason is Reason.ICMP_MISMATCH


@pytest.mark.parametrize(
    ("src", "hop_limit", "reason"),
    [
        ("fe80::1", 255, Reason.ICMP_UNRELATED),
        ("febf::1", 255, Reason.ICMP_UNRELATED),
        ("fe80::1", 254, Reason.MALFORMED),
        ("fec0::1", 255, Reason.MALFORMED),
        ("fd80::1", 255, Reason.MALFORMED),
    ],
)
def test_a_redirect_comes_from_a_router_on_the_link(
    src: str, hop_limit: int, reason: Reason
) -> None:
    message = IcmpMessage(137, 0, 0, 0, True, None)
    ends = (address_bytes(src), address_bytes("fd00::2"))
    packet = Packet(IPV6, *ends, PROTO_ICMPV6, 48, 40, hop_limit, 0, False, message)
    assert finding(packet).reason is reason


def test_icmp_messages() -> None:
    assert finding(icmp(0)).reason is Reason.NO_ENTRY
    assert finding(icmp(8)).reason is Reason.RACED
    assert finding(icmp(19)).reason is Reason.MALFORMED
    assert finding(icmp(129, family=IPV6)).reason is Reason.NO_ENTRY
    assert finding(icmp(128, family=IPV6)).reason is Reason.RACED


@pytest.mark.parametrize(
    ("status", "nat"),
    [
        (0, Nat.NONE),
        (IPS_SRC_NAT, Nat.SNAT),
        (IPS_DST_NAT, Nat.DNAT),
        (IPS_SRC_NAT | IPS_DST_NAT, Nat.BOTH),
    ],
)
def test_translation_is_in_the_status(status: int, nat: Nat) -> None:
    assert flow(status=status).nat is nat


@given(
    st.integers(0, 255),
    st.integers(-(2**17), 2**17),
    st.integers(-(2**17), 2**17),
    st.integers(0, 2**17),
    st.sampled_from(list(TcpState)),
    st.integers(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_findings_survive_a_common_shift(
    flags: int, number: int, ack: int, size: int, state: TcpState, direction: int, shift: int
) -> None:
    """The position of a flow in the number space does not matter, except for an RST with seq 0."""
    if flags & RST and 0 in {seq(at + by) for at in (number, ack) for by in (0, shift)}:
        return
    here = tcp(flags, number, ack, size)
    there = tcp(flags, number, ack, size, shift=shift)
    for kernel in (KERNEL_5_10, KERNEL_5_15, KERNEL_6_1):
        one = finding(here, flow(state=state, direction=direction), kernel=kernel)
        other = finding(there, flow(state=state, direction=direction, shift=shift), kernel=kernel)
        assert one.reason is other.reason
        assert (one.breach is None) == (other.breach is None)
        if one.breach is not None and other.breach is not None:
            assert one.breach.distance == other.breach.distance > 0


@pytest.mark.parametrize(
    ("reason", "flags", "direction", "state", "detail"),
    [
        (Reason.NO_ENTRY, SYN | ACK, None, None, "syn+ack without an entry"),
        (Reason.BAD_TRANSITION, SYN, 1, TcpState.CLOSE, "reply syn in CLOSE"),
        (Reason.BAD_TRANSITION, SYN, None, None, ""),
        (Reason.BAD_TRANSITION, SYN, 1, None, ""),
        (Reason.SEQ_OVER, ACK, 0, TcpState.ESTABLISHED, ""),
    ],
)
def test_the_detail_of_what_an_event_tells(
    reason: Reason, flags: int, direction: int | None, state: TcpState | None, detail: str
) -> None:
    assert detail_of(reason, flags, direction, state) == detail
