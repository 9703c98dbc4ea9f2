# SPDX-License-Identifier: MIT
"""The types of flows."""

import pytest

from nfq_guard.flow import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, FlowTuple, answering

A, B = bytes(4), bytes([10, 0, 0, 1])


@pytest.mark.parametrize(
    ("proto", "sent", "answer"),
    [
        (PROTO_TCP, (5, 6), (6, 5)),
        (PROTO_ICMP, (7, 8 << 8), (7, 0)),
        (PROTO_ICMP, (7, 0), (7, 8 << 8)),
        (PROTO_ICMPV6, (7, 128 << 8), (7, 129 << 8)),
        # A message that nothing answers.
        (PROTO_ICMP, (0, 3 << 8 | 1), (0, 3 << 8 | 1)),
    ],
)
def test_answer_swaps_the_ends(proto: int, sent: tuple[int, int], answer: tuple[int, int]) -> None:
    assert answering(FlowTuple(proto, A, B, *sent)) == FlowTuple(proto, B, A, *answer)
