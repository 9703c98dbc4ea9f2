# SPDX-License-Identifier: MIT
"""Some faults of `make faults` whose figures are counts, a few times each."""

import random
from pathlib import Path

import pytest

from tests.faults import daemon, rig

pytestmark = pytest.mark.kernel


@pytest.mark.no_cover  # traffic of thousands of packets, which others test one by one
@pytest.mark.parametrize("name", ["overflow-open", "overflow-closed", "bound-under-load"])
def test_each_packet_has_one_fate(name: str, tmp_path: Path) -> None:
    size = rig.SHORT._replace(starts=1)
    with rig.rig(tmp_path / "rig") as at:
        outcome = daemon.FAULTS[name](at, size, random.Random(name))  # noqa: S311 - reproducible
    assert outcome.exact, outcome
    assert outcome.met, outcome
