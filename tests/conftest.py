# SPDX-License-Identifier: MIT
"""What every test shares: real namespaces, and what to do where there are none."""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from nfq_guard.firewall import lock
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit
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
# Where those leave their data. Landlock lets a daemon write there, and not into the tree.
_DATA_OF_CHILDREN = lock.FOLDER / "coverage"

# The directories whose tests are measured: those of the rooms that have a floor of coverage, beside
# the tests with the mark `cover`. With MEASURE=all it is every fixed test.
_MEASURED = {"conntrack", "core", "flows", "policy", "service"}

# The tests whose daemons are measured, which doubles the time that a process takes to start. Those
# of every fixed test, with MEASURE=all, reach a fiftieth more of `service`.
_MEASURED_DAEMONS = {"test_supervisor_corners_kernel.py"}


def _is_measured(item: pytest.Item) -> bool:
    """Coverage counts what fixed tests reach, and not what random ones may."""
    if item.get_closest_marker("hypothesis"):
        return False
    if item.path.parent.name in _MEASURED or item.get_closest_marker("cover"):
        return True
    return os.environ.get("MEASURE") == "all"


@functools.cache
def _says_kernel(path: Path) -> bool:
    return re.search(r"\bkernel\b", path.read_text(encoding="utf-8")) is not None


def pytest_itemcollected(item: pytest.Item) -> None:
    """`make tests-kernel` finds the files of its tests by a word."""
    if item.get_closest_marker("kernel") and not _says_kernel(item.path):
        raise pytest.UsageError(f"{item.nodeid} has the mark, and its file lacks the word: kernel")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measuring a process costs a good half of its time, so only what a floor needs is measured.

    A test of the kernel has the time that this machine needs.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if not _is_measured(item):
            item.add_marker("no_cover")
        if item.get_closest_marker("kernel") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(limit(120)))
        if config.getoption("loadgroup", False) and item.get_closest_marker("xdist_group"):
            # A group that does not hold makes each worker start its machines and programs again.
            assert "@" in item.nodeid, "pytest-xdist has put no test into a group"


# In a worker of pytest-xdist a test is measured three times: by coverage.py, which begins with the
# process, and by pytest-cov twice, when it is loaded and with the session. The last one counts. A
# test that is not to be measured stops the last, and the others would go on, at the same cost.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Keep coverage.py from beginning with the worker."""
    os.environ.pop(_COVERAGE, None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End what pytest-cov began when it was loaded."""
    if not hasattr(session.config, "workerinput") or "coverage" not in sys.modules:
        return
    import coverage  # noqa: PLC0415 - the machines of `make kernels` have none

    if first := coverage.Coverage.current():
        first.stop()


def _leave_data_where_a_daemon_may() -> None:
    from coverage.config import CoverageConfig  # noqa: PLC0415 - as above

    _DATA_OF_CHILDREN.parent.mkdir(mode=0o750, exist_ok=True)
    _DATA_OF_CHILDREN.mkdir(exist_ok=True)
    config = CoverageConfig.deserialize(_coverage_of_children[_COVERAGE])
    config.data_file = str(_DATA_OF_CHILDREN / ".coverage")
    # The rest has no floor, or has one that tests without a process reach.
    config.source = [str(Path(__file__).parents[1] / "nfq_guard" / "service")]
    _coverage_of_children[_COVERAGE] = config.serialize()


def _has_measured_daemons(item: pytest.Item) -> bool:
    if os.environ.get("MEASURE") == "all":
        return item.path.parent.name == "service"
    return item.path.name in _MEASURED_DAEMONS


def _choose_coverage_of_children(item: pytest.Item) -> None:
    if _COVERAGE in os.environ and not _coverage_of_children:
        _coverage_of_children[_COVERAGE] = os.environ[_COVERAGE]
        if os.geteuid() == 0:
            _leave_data_where_a_daemon_may()
    if _has_measured_daemons(item) and not item.get_closest_marker("no_cover"):
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
