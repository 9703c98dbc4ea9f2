# SPDX-License-Identifier: MIT
"""Fixtures of the policy tests."""

import pytest

from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, Packet, Queued, Segment
from tests.support.policies import Case


@pytest.fixture
def judge_case() -> Case:
    """A segment beyond the window, without a known flow."""
    segment = Segment(40000, 80, seq(1), seq(2), ACK, 100, 10, b"", 0)
    packet = Packet(4, b"\n\0\0\1", b"\n\0\0\2", 6, 60, 20, 64, 0, False, segment)
    finding = Finding(Reason.SEQ_OVER, Breach(Reason.SEQ_OVER, seq(9), seq(4), 5))
    return Queued(b"", 0, "eth0", "", 0, 0), packet, None, finding
