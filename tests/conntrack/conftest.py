# SPDX-License-Identifier: MIT
"""Flows of our conntrack and of the live kernel's."""

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
    """Numbers of ends, each used once."""
    return iter(range(50_000))


@pytest.fixture(
    params=[
        *PLACES,
        *(pytest.param(f"{place}, live", marks=pytest.mark.kernel) for place in PLACES),
    ]
)
def flow(request: pytest.FixtureRequest, serials: Iterator[int]) -> Flow:
    """A flow that begins in one of three places of the number space, under default settings.

    Live ones also pass through the kernel, which must agree on every step.
    """
    place, _, live = request.param.partition(", ")
    if not live:
        return Flow(place)
    pair = request.getfixturevalue("live_pair")
    return Flow(place, pair=pair, ends=ends_of(IPV4, next(serials)))


@pytest.fixture(params=[*PLACES])
def make_flow(request: pytest.FixtureRequest) -> Callable[..., Flow]:
    """Flows under other kernels and sysctls, with a clock that the test sets."""

    def make(kernel: KernelRules = KERNEL_6_1, sysctls: Sysctls = DEFAULT_SYSCTLS) -> Flow:
        return Flow(request.param, kernel, sysctls)

    return make
