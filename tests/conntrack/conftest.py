# SPDX-License-Identifier: MIT
"""Flows to talk to, ours and the live kernel's."""

from collections.abc import Callable, Iterator

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KernelRules
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.flow import IPV4
from tests.fuzz_kernel.compare import Pair, ends_of
from tests.support.flow import Flow
from tests.support.live import LiveConntrack
from tests.support.trace import PLACES


@pytest.fixture(scope="session")
def live_pair() -> Iterator[Pair]:
    with LiveConntrack(DEFAULT_SYSCTLS) as live:
        yield Pair(live, KERNEL_6_1, DEFAULT_SYSCTLS)


@pytest.fixture(scope="session")
def serials() -> Iterator[int]:
    """Numbers of ends, each given out once."""
    return iter(range(50_000))


@pytest.fixture(
    params=[
        *PLACES,
        *(pytest.param(f"{place}, live", marks=pytest.mark.kernel) for place in PLACES),
    ]
)
def flow(request: pytest.FixtureRequest, serials: Iterator[int]) -> Flow:
    """A flow that begins in one of three places of the number space, under default settings.

    The live ones go through the kernel too, which has to agree on every step.
    """
    place, _, live = request.param.partition(", ")
    if not live:
        return Flow(place)
    pair = request.getfixturevalue("live_pair")
    return Flow(place, pair=pair, ends=ends_of(IPV4, next(serials)))


@pytest.fixture(params=[*PLACES])
def make_flow(request: pytest.FixtureRequest) -> Callable[..., Flow]:
    """Flows under other kernels and sysctls, and with a clock of ours."""

    def make(kernel: KernelRules = KERNEL_6_1, sysctls: Sysctls = DEFAULT_SYSCTLS) -> Flow:
        return Flow(request.param, kernel, sysctls)

    return make
