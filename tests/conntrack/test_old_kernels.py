# SPDX-License-Identifier: MIT
"""The results of other generations for the same segments (kernel.md 1.11)."""

from collections.abc import Callable

import pytest

from nfq_guard.conntrack.kernel_rules import (
    KERNEL_5_10,
    KERNEL_5_14,
    KERNEL_5_15,
    KERNEL_5_18,
    KERNEL_6_12,
    KERNELS,
    KernelRules,
)
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.flow import TcpState
from tests.support.flow import Flow

ALL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)
OLD_KERNELS = (KERNEL_5_10, KERNEL_5_14, KERNEL_5_15, KERNEL_5_18)
OLD = pytest.mark.parametrize("kernel", OLD_KERNELS, ids=lambda kernel: kernel.name)
ANY_SEGMENT_STARTS_OVER = (KERNEL_5_10, KERNEL_5_14, KERNEL_5_15)
MakeFlow = Callable[..., Flow]


def after_data(flow: Flow) -> Flow:
    """Open it, and send 70,000 bytes in the original direction, all acknowledged."""
    flow.opened()
    for at in range(1, 70_001, 1000):
        flow.passes(
            f"> P. {at}:{at + 1000}(1000) ack 1 win 1000", f"< . 1:1(0) ack {at + 1000} win 1000"
        )
    return flow


@ALL
def test_late_retransmission(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """The packet of Kubernetes issue 74839: INVALID until 6.0, ignored since."""
    flow = after_data(make_flow(kernel))
    answer = flow.see("> P. 1:1001(1000) ack 1 win 1000")
    assert answer == (
        "INVALID seq-under" if kernel in OLD_KERNELS else "ESTABLISHED ignored seq-under"
    )


@ALL
def test_late_ack(make_flow: MakeFlow, kernel: KernelRules) -> None:
    flow = after_data(make_flow(kernel))
    answer = flow.see("< . 1:1(0) ack 4000 win 1000")
    assert answer == (
        "INVALID ack-under" if kernel in OLD_KERNELS else "ESTABLISHED ignored ack-under"
    )


@OLD
def test_old_segment_with_a_wrong_ack(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """The lower bound of the sequence number is reported before the upper one of the ACK."""
    flow = after_data(make_flow(kernel))
    assert flow.see("> P. 1:1001(1000) ack 90000 win 1000") == "INVALID seq-under"


@OLD
def test_ack_of_data_nobody_sent(make_flow: MakeFlow, kernel: KernelRules) -> None:
    flow = make_flow(kernel).opened()
    assert flow.see("< . 1:1(0) ack 2 win 1000") == "INVALID ack-over"


@ALL
def test_overshoot(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """INVALID until 6.0, but from 5.15 on its data counts as sent, so that its ACK passes."""
    flow = make_flow(kernel).opened()
    answer = flow.see("> P. 1002:1500(498) ack 1 win 1000")
    assert answer == (
        "INVALID seq-over" if kernel in OLD_KERNELS else "ESTABLISHED ignored overshoot"
    )
    answer = flow.see("< . 1:1(0) ack 1500 win 1000")
    assert answer == ("INVALID ack-over" if kernel in (KERNEL_5_10, KERNEL_5_14) else "ESTABLISHED")


@ALL
def test_overshoot_of_a_liberal_flow(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """It passes; from 6.1 on its data counts as sent."""
    flow = make_flow(kernel, Sysctls(be_liberal=True)).opened()
    end = flow.peer(">").td_end
    flow.passes("> P. 1002:1500(498) ack 1 win 1000")
    moved = kernel not in OLD_KERNELS
    assert flow.peer(">").td_end == (end + 1499 if moved else end) % 2**32
    assert flow.timeout_s == (300 if moved else 432_000)


@ALL
def test_rst_after_a_syn_of_its_own_side(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """An RST without an acknowledgement, before any packet was ignored."""
    flow = make_flow(kernel)
    flow.passes("> S 0:0(0) win 1000", "< S 0:0(0) win 1000")
    answer = flow.see("< R 500000:500000(0) win 1000")
    passes = kernel in (KERNEL_5_14, KERNEL_5_18)
    assert answer == ("ESTABLISHED" if passes else "INVALID seq-over")


@ALL
def test_a_second_syn_without_scaling(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """Sent by the side that opened the flow; in 5.18 it ends the scaling of the other side."""
    flow = make_flow(kernel)
    flow.passes(
        "> S 0:0(0) win 1000 <mss 1460,nop,wscale 7>",
        "< S. 0:0(0) ack 1 win 1000 <mss 1460,nop,wscale 7>",
        "> S. 1:1(0) ack 1 win 1000 <mss 1460>",
    )
    assert flow.peer("<").td_scale == (0 if kernel is KERNEL_5_18 else 7)


@OLD
def test_liberal(make_flow: MakeFlow, kernel: KernelRules) -> None:
    flow = after_data(make_flow(kernel, Sysctls(be_liberal=True)))
    flow.passes("> P. 1:1001(1000) ack 1 win 1000", "> P. 500000:500010(10) ack 1 win 1000")


@ALL
def test_rst_while_closing(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """Accepted unchecked since 5.14."""
    flow = make_flow(kernel).opened()
    flow.passes("> F. 1:1(0) ack 1 win 1000")
    answer = flow.see("< R 500000:500000(0)")
    assert answer == ("INVALID seq-over" if kernel is KERNEL_5_10 else "ESTABLISHED")


@ALL
def test_rst_after_an_ignored_syn(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """5.10 checks it against `td_maxack`, later kernels do not."""
    flow = make_flow(kernel).opened()
    flow.see("> S 90000:90000(0) win 1000")
    answer = flow.see("< R. 0:0(0) ack 90001")
    assert answer == ("INVALID rst-outside" if kernel is KERNEL_5_10 else "ESTABLISHED")


@ALL
def test_rst_that_answers_an_ignored_syn(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """5.10 passes one above `td_maxack` without the window check, and keeps the state."""
    flow = make_flow(kernel).opened()
    assert flow.see("> S 5000:5000(0) win 1000") == "ESTABLISHED ignored state"
    assert flow.see("< R. 900000:900000(0) ack 5001 win 1000") == "ESTABLISHED"
    snapshot = flow.table.snapshot()
    assert snapshot is not None
    stays = kernel.rst_after_syn_checked
    assert snapshot.state == (TcpState.ESTABLISHED if stays else TcpState.CLOSE)
    assert snapshot.timeout_s == 10


@ALL
def test_sysctl_ignore_invalid_rst(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """5.10 does not have it, so setting it changes nothing there."""
    flow = make_flow(kernel, Sysctls(ignore_invalid_rst=True)).opened()
    answer = flow.see("< R 0:0(0)")
    assert answer == ("INVALID rst-outside" if kernel is KERNEL_5_10 else "ESTABLISHED")


@ALL
def test_rst_with_number_zero(kernel: KernelRules) -> None:
    """Before a flow is settled it goes to the window check since 5.14."""
    flow = Flow("plain", kernel)
    flow.passes("> S 0:0(0) win 1000", "< S. 0:0(0) ack 1 win 1000", "> S. 0:0(0) ack 1 win 1000")
    zero = -flow.numbers[1]
    passes = "ESTABLISHED ignored seq-under"
    assert flow.see(f"< R. {zero}:{zero}(0) ack 1") == {
        "5.10": "INVALID rst-outside",
        "6.1": passes,
        "6.12": passes,
    }.get(kernel.name, "INVALID seq-under")


@ALL
def test_segment_in_a_half_open_flow(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """Before 5.18 any later segment of the answering side re-initialises its window.

    That ends the scaling of its own window, because its options do not contain a scale.
    """
    flow = make_flow(kernel)
    flow.passes(
        "> S 0:0(0) win 1000 <wscale 7>",
        "< S. 0:0(0) ack 1 win 1000 <wscale 7>",
        "< P. 1:101(100) ack 1 win 1000 <TS 1 1>",
    )
    assert flow.peer("<").td_scale == (0 if kernel in ANY_SEGMENT_STARTS_OVER else 7)
    assert flow.peer(">").td_scale == 7


@ALL
def test_other_segment_in_a_half_open_flow(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """Only the window of the side that must answer is re-initialised."""
    flow = make_flow(kernel)
    flow.passes(
        "> S 0:0(0) win 1000 <wscale 7>",
        "< S. 0:0(0) ack 1 win 1000 <wscale 7>",
        "> S. 0:0(0) ack 1 win 1000 <wscale 7>",
    )
    assert flow.peer(">").td_scale == 7


@ALL
def test_rst_after_a_challenge(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """Passes by its own rule since 6.2, in stable 6.1 and in Ubuntu's 5.19.

    Before 5.18 it passes because any later segment re-initialises the window of a half-open flow.
    """
    flow = make_flow(kernel)
    flow.passes("> S 0:0(0) win 1000")
    flow.see("< . 700:700(0) ack 9000 win 1000")
    answer = flow.see("> R 9000:9000(0) win 0")
    assert answer == "ESTABLISHED"
    moved = kernel in ANY_SEGMENT_STARTS_OVER
    assert flow.peer(">").td_end == (flow.numbers[0] + (9000 if moved else 1)) % 2**32


@ALL
def test_closing_out_of_the_window(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """It lowers the timeout since 6.1."""
    flow = make_flow(kernel).opened()
    flow.see("> F. 900000:900000(0) ack 1 win 1000")
    flow.see("< R. 900000:900000(0) ack 1 win 1000")
    assert flow.timeout_s == (432_000 if kernel in OLD_KERNELS else 300)


@ALL
def test_inexact_rst_in_the_window(make_flow: MakeFlow, kernel: KernelRules) -> None:
    """The flow stays; its timeout is that of CLOSE, on newer ones that of unacknowledged data."""
    flow = make_flow(kernel).opened()
    flow.passes("> P. 1:101(100) ack 1 win 1000", "< . 1:1(0) ack 101 win 1000")
    flow.passes("> R. 150:150(0) ack 1 win 1000")
    assert flow.timeout_s == (300 if kernel is KERNEL_6_12 else 10)


@ALL
def test_exact_rst(make_flow: MakeFlow, kernel: KernelRules) -> None:
    flow = make_flow(kernel).opened()
    flow.passes("> P. 1:101(100) ack 1 win 1000", "< . 1:1(0) ack 101 win 1000")
    flow.passes("> R. 101:101(0) ack 1 win 1000")
    assert flow.timeout_s == 10
