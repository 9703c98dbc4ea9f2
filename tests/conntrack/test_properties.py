# SPDX-License-Identifier: MIT
"""Properties that hold for any segments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.conntrack.kernel_rules import KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CT_INVALID, FlowTable
from nfq_guard.flow import TcpState
from tests.support.trace import Ends, Step

KERNELS = st.sampled_from([KERNEL_5_10, KERNEL_5_15, KERNEL_6_1])
SYSCTLS = st.builds(
    Sysctls,
    be_liberal=st.booleans(),
    loose=st.booleans(),
    ignore_invalid_rst=st.booleans(),
    expires=st.booleans(),
    max_retrans=st.integers(0, 5),
)
SPACE = 2**32
FLAGS = st.one_of(st.sampled_from([0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14]), st.integers(0, 255))
STEPS = st.lists(
    st.builds(
        Step,
        direction=st.integers(0, 1),
        flags=FLAGS,
        seq=st.integers(0, SPACE - 1),
        ack=st.integers(0, SPACE - 1),
        win=st.integers(0, 65535),
        payload_len=st.integers(0, 65000),
        options=st.binary(max_size=40),
        wait_s=st.floats(0, 500),
    ),
    max_size=20,
)
# Small numbers, so that segments have to do with each other; 0 has a meaning of its own in RST.
NEAR_STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        FLAGS,
        st.integers(-3, 3),
        st.integers(-3, 3),
        st.sampled_from([0, 1, 2, 1000]),
        st.sampled_from([0, 1, 2, 1000, 70000]),
    ),
    max_size=30,
)


def run(steps: list[Step], kernel: KernelRules, sysctls: Sysctls) -> list[tuple[object, ...]]:
    table = FlowTable(kernel, sysctls)
    ends = Ends()
    now = 0.0
    found: list[tuple[object, ...]] = []
    for step in steps:
        now += step.wait_s
        answer = table.track(ends.packet(step), now)
        found.append((answer, table.reason, table.ignored, table.state))
        assert (answer == CT_INVALID) is (table.reason is not None)
        assert answer != CT_INVALID or table.ignored is None
    return found


@pytest.mark.compiled
@given(STEPS, KERNELS, SYSCTLS)
def test_any_segments_are_judged_and_twice_alike(
    steps: list[Step], kernel: KernelRules, sysctls: Sysctls
) -> None:
    assert run(steps, kernel, sysctls) == run(steps, kernel, sysctls)


@pytest.mark.compiled
@given(STEPS, KERNELS, SYSCTLS)
def test_every_number_stays_in_its_field(
    steps: list[Step], kernel: KernelRules, sysctls: Sysctls
) -> None:
    """A window may grow without limit, but never wraps to a small or negative value."""
    table = FlowTable(kernel, sysctls)
    now = 0.0
    for step in steps:
        now += step.wait_s
        table.track(Ends().packet(step), now)
        snapshot = table.snapshot()
        if snapshot is None or snapshot.peers is None:
            continue
        assert 0 <= snapshot.retrans < 256
        for peer in snapshot.peers:
            assert 0 <= peer.td_scale <= 14
            assert 0 <= peer.td_maxwin < SPACE
            for number in (peer.td_end, peer.td_maxend, peer.td_maxack):
                assert 0 <= number < SPACE


@pytest.mark.compiled
@given(NEAR_STEPS, st.integers(0, SPACE - 1), st.integers(0, SPACE - 1), KERNELS)
def test_judgments_do_not_depend_on_where_the_numbers_begin(
    choices: list[tuple[int, ...]], shift_original: int, shift_reply: int, kernel: KernelRules
) -> None:
    """For one flow seen from its SYN on, 0 aside."""
    plain: list[Step] = []
    shifted: list[Step] = []
    for numbers, steps in (
        ((1_000_000, 2_000_000), plain),
        ((1_000_000 + shift_original, 2_000_000 + shift_reply), shifted),
    ):
        opening = [
            Step(0, 0x02, numbers[0] % SPACE, 0, 1000),
            Step(1, 0x12, numbers[1] % SPACE, (numbers[0] + 1) % SPACE, 1000),
            Step(0, 0x10, (numbers[0] + 1) % SPACE, (numbers[1] + 1) % SPACE, 1000),
        ]
        steps.extend(opening)
        for way, flags, seq, ack, unit, length in choices:
            seq_number = (numbers[way] + 1 + seq * max(unit, 1)) % SPACE
            ack_number = (numbers[1 - way] + 1 + ack * max(unit, 1)) % SPACE
            steps.append(
                Step(way, flags, seq_number or 1, ack_number or 1, unit, min(length, 65000))
            )
    if not any(number in (0, 1) for step in shifted[1:] for number in (step.seq, step.ack)):
        assert _first_flow(run(plain, kernel, Sysctls())) == _first_flow(
            run(shifted, kernel, Sysctls())
        )


def _first_flow(found: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Up to where the flow is opened again.

    An RST may then acknowledge an end that has shown nothing, of which conntrack has number 0.
    """
    for index, (*_, state) in enumerate(found):
        if index and state in (TcpState.NONE, TcpState.SYN_SENT):
            return found[:index]
    return found
