# SPDX-License-Identifier: MIT
"""What every test shares: real namespaces, and what to do where there are none."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from nfq_guard.lab.netns import Namespace
from tests.support.missing import cannot_run

settings.register_profile("fast", max_examples=100, deadline=None)
settings.register_profile("deep", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


for _number, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    # Started in the background by a script. What tests start and signal must not inherit that.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


# Set by coverage.py for processes that tests start.
_COVERAGE = "COVERAGE_PROCESS_CONFIG"
_coverage_of_children: dict[str, str] = {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Coverage counts what fixed tests reach, and not what random ones may.

    Measuring a process costs a good half of its time, so children are measured only where a floor
    depends on them.
    """
    for item in items:
        if item.get_closest_marker("hypothesis"):
            item.add_marker("no_cover")
        if config.getoption("loadgroup", False) and item.get_closest_marker("xdist_group"):
            # A group that does not hold makes each worker start its machines and programs again.
            assert "@" in item.nodeid, "pytest-xdist has put no test into a group"


def _choose_coverage_of_children(item: pytest.Item) -> None:
    if _COVERAGE in os.environ:
        _coverage_of_children[_COVERAGE] = os.environ[_COVERAGE]
    if item.path.parent.name == "service" and not item.get_closest_marker("no_cover"):
        os.environ.update(_coverage_of_children)
    else:
        os.environ.pop(_COVERAGE, None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A kernel test needs root."""
    _choose_coverage_of_children(item)
    if item.get_closest_marker("kernel") and os.geteuid() != 0:
        cannot_run("needs root: it makes network namespaces")


@pytest.fixture(autouse=True)
def _reload_signals() -> Iterator[None]:
    """`main(["run"])` ignores them; what a later test starts must not inherit that."""
    yield
    for number in (signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def namespace() -> Iterator[Callable[[str], Namespace]]:
    """Make network namespaces by label; all are removed at the end."""
    made: list[Namespace] = []

    def make(label: str) -> Namespace:
        made.append(Namespace(label))
        return made[-1]

    yield make
    for one in made:
        one.close()
