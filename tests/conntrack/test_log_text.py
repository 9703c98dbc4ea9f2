# SPDX-License-Identifier: MIT
"""The texts of conntrack's log, in every spelling from 5.10 to 7.x (kernel.md 1.12)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.conntrack.log_text import (
    Logged,
    is_conntrack_log,
    is_dropped,
    parse_ignored,
    parse_log,
)
from nfq_guard.conntrack.states import CLASS_ACK, CLASS_FIN, CLASS_SYN
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import TcpState
from nfq_guard.seqno import Seq

_ESTABLISHED = int(TcpState.ESTABLISHED)


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        # from 6.1 on
        ("6: SEQ is over upper bound 17 ", Logged(Reason.SEQ_OVER, Seq(16))),
        ("6: SEQ is over upper bound 0 ", Logged(Reason.SEQ_OVER, Seq(0xFFFFFFFF))),
        ("6: ACK is over upper bound 4294967295 ", Logged(Reason.ACK_OVER, Seq(0xFFFFFFFE))),
        (
            "6: packet (index 0) in dir 1 invalid, state ESTABLISHED ",
            Logged(Reason.BAD_TRANSITION, transition=(1, CLASS_SYN, _ESTABLISHED)),
        ),
        (
            "6: packet (index 2) in dir 0 invalid, state SYN_SENT2 ",
            Logged(Reason.BAD_TRANSITION, transition=(0, CLASS_FIN, int(TcpState.SYN_SENT2))),
        ),
        (
            "6: packet (index 3) in dir 0 invalid, state SYN_SENT ",
            Logged(Reason.BAD_TRANSITION, transition=(0, CLASS_ACK, int(TcpState.SYN_SENT))),
        ),
        ("6: invalid new ", Logged(Reason.NO_ENTRY)),
        # up to 5.19
        (
            "6: SEQ is over the upper bound (over the window of the receiver) ",
            Logged(Reason.SEQ_OVER),
        ),
        (
            "6: SEQ is under the lower bound (already ACKed data retransmitted) ",
            Logged(Reason.SEQ_UNDER),
        ),
        (
            "6: ACK is over the upper bound (ACKed data not seen yet) ",
            Logged(Reason.ACK_OVER),
        ),
        (
            "6: ACK is under the lower bound (possible overly delayed ACK) ",
            Logged(Reason.ACK_UNDER),
        ),
        ("6: invalid state ", Logged(Reason.BAD_TRANSITION)),
        # everywhere
        ("6: invalid rst ", Logged(Reason.RST_OUTSIDE)),
        ("6: invalid RST ", Logged(Reason.RST_OUTSIDE)),
        ("6: invalid tcp flag combination ", Logged(Reason.BAD_FLAGS)),
        ("6: truncated packet ", Logged(Reason.MALFORMED)),
        ("6: truncated/malformed packet ", Logged(Reason.MALFORMED)),
        ("6: bad checksum ", Logged(Reason.BAD_CHECKSUM)),
        ("17: short packet ", Logged(Reason.MALFORMED)),
        ("17: bad checksum ", Logged(Reason.BAD_CHECKSUM)),
        ("136: invalid checksum coverage ", Logged(Reason.MALFORMED)),
        ("1: bad hw icmp checksum ", Logged(Reason.BAD_CHECKSUM)),
        ("1: invalid icmp type ", Logged(Reason.MALFORMED)),
        ("58: ICMPv6 checksum failed ", Logged(Reason.BAD_CHECKSUM)),
        ("132: bad CRC ", Logged(Reason.BAD_CHECKSUM)),
        ("132: nf_ct_sctp: bad CRC ", Logged(Reason.BAD_CHECKSUM)),
        ("132: nf_ct_sctp: short packet ", Logged(Reason.MALFORMED)),
        (
            "132: verification tag check failed 11110000 vs 0 for dir 0 ",
            Logged(Reason.BAD_TAG),
        ),
        ("132: Invalid, old_state 0, dir 1, type 1 ", Logged(Reason.BAD_TRANSITION)),
        (
            "132: do_basic_checks failed. chunk num 1, type 0, len 0 flag 1 ",
            Logged(Reason.MALFORMED),
        ),
        # kernels that follow DCCP
        ("33: nf_ct_dccp: truncated/malformed packet ", Logged(Reason.MALFORMED)),
        ("33: nf_ct_dccp: bad checksum coverage ", Logged(Reason.MALFORMED)),
        ("33: nf_ct_dccp: bad checksum ", Logged(Reason.BAD_CHECKSUM)),
        ("33: nf_ct_dccp: reserved packet type ", Logged(Reason.MALFORMED)),
        ("33: nf_ct_dccp: invalid state transition ", Logged(Reason.BAD_TRANSITION)),
        ("33: invalid state transition ", Logged(Reason.BAD_TRANSITION)),
        ("33: not picking up existing connection ", Logged(Reason.NO_ENTRY)),
        ("136: checksum missing ", Logged(Reason.MALFORMED)),
        ("58: invalid saddr or hoplimit for redirect ", Logged(Reason.MALFORMED)),
        ("58: short redirect ", Logged(Reason.MALFORMED)),
        ("58: redirect without options ", Logged(Reason.ICMP_UNRELATED)),
        ("1: outer daddr 10.8.0.3 != inner 10.8.0.2 ", Logged(Reason.ICMP_MISMATCH)),
        ("58: outer daddr fd00::3 != inner fd00::2 ", Logged(Reason.ICMP_MISMATCH)),
    ],
)
def test_reasons(text: str, logged: Logged) -> None:
    for old_segments_pass in (False, True):
        assert parse_log(f"nf_ct_proto_{text}", old_segments_pass=old_segments_pass) == logged


@pytest.mark.parametrize(
    "text",
    [
        "6: packet (index 0) in dir 0 ignored, state ESTABLISHED ",
        "6: SEQ is under lower bound 17 ",
        "6: ignored ACK under lower bound 17 ",
        "6: invalid packet ignored in state CLOSE ",
        "6: challenge-ack ignored ",
        "6: packet (index 2) in dir 1 invalid, lower timeout to 75000 ",
        "6: packet (index 4) in dir 0 invalid, lowered timeout to UNACK ",
    ],
)
def test_texts_of_packets_that_pass_and_texts_beside_a_reason(text: str) -> None:
    for old_segments_pass in (False, True):
        assert parse_log(f"nf_ct_proto_{text}", old_segments_pass=old_segments_pass) is None


def test_a_helper_that_drops_a_packet_does_not_call_it_invalid() -> None:
    text = "nf_ct_sip: dropping packet: cannot parse cseq "
    assert is_dropped(text)
    assert parse_log(text, old_segments_pass=True) is None
    assert not is_dropped("nf_ct_proto_6: invalid new ")


def test_overshoot_passes_from_6_1_on() -> None:
    text = "nf_ct_proto_6: 12 bytes more than expected "
    assert parse_log(text, old_segments_pass=True) is None
    assert parse_log(text, old_segments_pass=False) == Logged(Reason.SEQ_OVER, excess=12)


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("nf_ct_proto_6: packet (index 0) in dir 0 ignored, state ESTABLISHED ", Ignored.STATE),
        ("nf_ct_proto_6: invalid packet ignored in state CLOSE ", Ignored.STATE),
        ("nf_ct_proto_33: nf_ct_dccp: invalid packet ignored ", Ignored.STATE),
        ("nf_ct_proto_33: invalid packet ", Ignored.STATE),
        ("nf_ct_proto_6: SEQ is under lower bound 17 ", Ignored.SEQ_UNDER),
        ("nf_ct_proto_6: ignored ACK under lower bound 17 ", Ignored.ACK_UNDER),
        ("nf_ct_proto_6: challenge-ack ignored ", Ignored.CHALLENGE_ACK),
        ("nf_ct_proto_6: 12 bytes more than expected ", Ignored.OVERSHOOT),
        ("nf_ct_proto_6: invalid new ", None),
        ("nf_ct_proto_6: packet (index 2) in dir 1 invalid, lower timeout to 75000 ", None),
        ("dropped: challenge-ack ignored ", None),
        ("nf_ct_sip: dropping packet: cannot parse cseq ", None),
    ],
)
def test_why_a_packet_passes_with_its_flow(text: str, ignored: Ignored | None) -> None:
    assert parse_ignored(text) == ignored
    assert is_conntrack_log(text) == text.startswith("nf_ct_")


@pytest.mark.parametrize("text", ["", "dropped: ", "SEQ is over upper bound 17 ", "nf_ct"])
def test_lines_of_others(text: str) -> None:
    """A rule of the host may log to the same group, with a prefix of its own."""
    assert parse_log(text, old_segments_pass=True) is None


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("6: SEQ is over upper bound 17", Logged(Reason.SEQ_OVER)),
        ("6: SEQ is over upper bound 4294967296 ", Logged(Reason.SEQ_OVER)),
        ("6: SEQ is over upper bound 99999999999 ", Logged(Reason.SEQ_OVER)),
        ("6: SEQ is over upper bo", Logged(None)),
        ("6: SEQ is under l", Logged(None)),
        ("6: packet (index 0) in dir 1 invalid, state ESTA", Logged(Reason.BAD_TRANSITION)),
        ("6: packet (index 0) in dir 1 invalid, state LISTEN ", Logged(Reason.BAD_TRANSITION)),
        ("6: packet (index 0) in dir 1 inv", Logged(None)),
        ("6: ", Logged(None)),
        ("6: segment of another day ", Logged(None)),
        ("58: packet of a new protocol ", Logged(None)),
    ],
)
def test_texts_cut_off_and_texts_of_unknown_kernels(text: str, logged: Logged) -> None:
    assert parse_log(f"nf_ct_proto_{text}", old_segments_pass=True) == logged


@given(st.text(), st.booleans())
def test_any_text_is_read(text: str, old_segments_pass: bool) -> None:
    assert parse_log(text, old_segments_pass=old_segments_pass) is None or text.startswith("nf_ct_")
    parse_log(f"nf_ct_proto_6: {text}", old_segments_pass=old_segments_pass)
