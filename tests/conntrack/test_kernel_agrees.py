# SPDX-License-Identifier: MIT
"""Compares our conntrack with the live one: the same packets, log texts and windows."""

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe, get_context
from pathlib import Path

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, TCP_TIMEOUTS_S, Sysctls
from nfq_guard.conntrack.table import CT_ESTABLISHED, CT_INVALID, CT_NEW
from nfq_guard.finding import Ignored, Reason
from nfq_guard.flow import IPV4, IPV6
from tests.fuzz_kernel.campaign import (
    CHUNK_PACKETS,
    RUNNING_KERNEL,
    Failure,
    Tally,
    read_trace,
    run_chunk,
    shrink,
    write_trace,
)
from tests.fuzz_kernel.compare import Pair, ends_of, run_trace
from tests.fuzz_kernel.remote import Machine, serve
from tests.support.live import LiveConntrack
from tests.support.trace import Ends, Step, parse

TRACES = sorted((Path(__file__).parent / "traces").glob("*.trace"))
# Cases that every run of this length has met; without them a run would prove little.
MET = (
    Reason.SEQ_OVER,
    Reason.ACK_OVER,
    Reason.RST_OUTSIDE,
    Reason.BAD_TRANSITION,
    Reason.NO_ENTRY,
    Reason.BAD_FLAGS,
    Ignored.SEQ_UNDER,
    Ignored.ACK_UNDER,
    Ignored.OVERSHOOT,
    Ignored.STATE,
)


def described(failures: list[Failure]) -> str:
    return "\n".join(
        "\n".join((*map(str, failure.steps), *failure.mismatch.what, "")) for failure in failures
    )


@pytest.mark.compiled
@pytest.mark.kernel
@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_flows(seed: int) -> None:
    """Three seeds of two chunks each: 60,000 packets and more, under six sets of sysctls."""
    tally = Tally()
    for chunk in range(2):
        run_chunk(seed, chunk, tally)
    assert not tally.failures, described(tally.failures)
    assert tally.packets >= 2 * CHUNK_PACKETS
    assert set(MET) <= set(tally.causes)
    assert {CT_NEW, CT_ESTABLISHED, CT_INVALID} <= set(tally.ctstates)


@pytest.mark.kernel
@pytest.mark.long
def test_random_flows_over_a_line() -> None:
    """As emulated machines are fuzzed: exactly the differences are found."""
    here, there = Pipe()
    process = get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()
    machine = Machine(here)
    right, wrong, live = Tally(), Tally(), Tally()
    other = replace(RUNNING_KERNEL, overshoot_moves_end=not RUNNING_KERNEL.overshoot_moves_end)
    run_chunk(1, 0, right, 3_000, RUNNING_KERNEL, machine.conntrack)
    run_chunk(1, 0, wrong, 100, other, machine.conntrack)  # each flow that differs is shrunk
    machine.end({})
    process.join()
    run_chunk(1, 0, live, 3_000)
    assert right == live
    assert not right.failures, described(right.failures)
    assert wrong.failures
    assert process.exitcode == 0


@pytest.mark.kernel
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_kept_traces(path: Path) -> None:
    """Flows that once differed, or that random flows seldom include."""
    conditions, steps = read_trace(path)
    mismatch = run_trace(steps, conditions.family, RUNNING_KERNEL, conditions.sysctls)
    assert mismatch is None, mismatch


@pytest.mark.kernel
def test_expiry() -> None:
    """A FIN after the entry has expired has no flow."""
    timeouts = (*TCP_TIMEOUTS_S[:8], 1, *TCP_TIMEOUTS_S[9:])
    steps = [
        parse("> S 0:0(0)"),
        parse("< S. 0:0(0) ack 1"),
        parse("> . 1:1(0) ack 1"),
        parse("> R. 1:1(0) ack 1"),
        parse("< F. 1:1(0) ack 1"),
        parse("+1.3 < F. 1:1(0) ack 1"),
        parse("> S 0:0(0)"),
    ]
    assert run_trace(steps, IPV4, KERNEL_6_1, Sysctls(tcp_timeouts_s=timeouts)) is None


@pytest.mark.kernel
@pytest.mark.parametrize(
    "lines",
    [
        ("> S 0:0(0)", "+2.5 < S 0:0(0)"),
        (
            "> S 0:0(0) win 1000",
            "< S. 0:0(0) ack 1 win 1000",
            "> . 1:1(0) ack 1 win 1000",
            "< F. 9000:9000(0) ack 1 win 1000",
            "> P. 1:2(1) ack 1 win 1000",
            "+2.5 < F. 9000:9000(0) ack 1 win 1000",
            "> F. 9000:9000(0) ack 1 win 1000",
        ),
    ],
    ids=["a SYN of the other end", "closing outside the window"],
)
def test_what_does_not_extend_an_entry(lines: tuple[str, ...]) -> None:
    steps = [parse(line) for line in lines]
    assert run_trace(steps, IPV4, RUNNING_KERNEL, DEFAULT_SYSCTLS) is None


@pytest.mark.kernel
def test_retransmissions_are_counted_in_an_octet() -> None:
    """After 256 of them the count is 0, and the timeout long again."""
    steps = [parse("> S 0:0(0)"), parse("< S. 0:0(0) ack 1"), parse("> . 1:1(0) ack 1")]
    steps += [parse("< . 1:1(0) ack 1")] * 260
    assert run_trace(steps, IPV4, KERNEL_6_1, DEFAULT_SYSCTLS) is None


@pytest.mark.kernel
@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_headers_between(live_pair: Pair, family: int, serials: Iterator[int]) -> None:
    """IPv4 options and IPv6 extension headers are not counted as data."""
    ends = Between(ends_of(family, next(serials)))
    for line in (
        "> S 0:0(0) win 1000",
        "< S. 0:0(0) ack 1 win 1000",
        "> P. 1:101(100) ack 1 win 1000",
        "< . 1:1(0) ack 101 win 1000",
        "< . 1:1(0) ack 102 win 1000",
    ):
        (outcome,) = live_pair.step_all([(ends, parse(line))])
        assert not outcome.differences


class Between(Ends):
    """Ends whose packets have something between the IP header and the segment."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(ends.family, ends.addresses, ends.ports)

    def octets(self, step: Step) -> bytes:
        whole = super().octets(step)
        if self.family == IPV4:
            options = b"\x01\x01\x01\x00"
            length = int.from_bytes(whole[2:4]) + len(options)
            head = b"\x46" + whole[1:2] + length.to_bytes(2) + whole[4:10]
            rest = head + whole[12:20] + options
            total = 0xFFFF - int.from_bytes(rest) % 0xFFFF
            return head + total.to_bytes(2) + whole[12:20] + options + whole[20:]
        destination_options = bytes((6, 0, 1, 4, 0, 0, 0, 0))
        length = int.from_bytes(whole[4:6]) + len(destination_options)
        return (
            whole[:4]
            + length.to_bytes(2)
            + b"\x3c"
            + whole[7:40]
            + destination_options
            + whole[40:]
        )


@pytest.mark.kernel
def test_shrinking_finds_the_step_that_matters(tmp_path: Path) -> None:
    """With one of our rules disabled, a long flow shrinks to the trace of that rule."""
    conditions, steps = read_trace(TRACES[0])
    steps = [parse("> S 0:0(0)"), parse("< S. 0:0(0) ack 1"), parse("> . 1:1(0) ack 1")]
    steps += [parse(f"> P. {at}:{at + 10}(10) ack 1") for at in range(1, 200, 10)]
    steps.append(parse("< . 1:1(0) ack 5000"))
    wrong = Sysctls(be_liberal=True)
    with LiveConntrack(conditions.sysctls) as live:
        failure = shrink(Pair(live, KERNEL_6_1, wrong), conditions, steps, (), 0)
    assert len(failure.steps) == 3
    assert failure.mismatch.what[0] == "ctstate: kernel INVALID, ours ESTABLISHED"
    write_trace(failure, tmp_path / "kept.trace")
    assert read_trace(tmp_path / "kept.trace") == (conditions, list(failure.steps))
