# SPDX-License-Identifier: MIT
"""Damaged captures are read as far as possible, or refused by name. See also `make damage`."""

import itertools
import random
from pathlib import Path

import pytest

from tests.support.damage import Bench, changes, cuts, sources

SOURCES = dict(sources(1))


@pytest.mark.compiled
@pytest.mark.parametrize("source", SOURCES)
def test_damaged(source: str, tmp_path: Path) -> None:
    rng = random.Random(source)  # noqa: S311 - reproducible, no secret
    octets = SOURCES[source]
    bench = Bench(tmp_path, 1)
    ways = [
        ("whole", octets),
        *rng.sample(list(cuts(octets)), 12),
        *itertools.islice(changes(octets, rng), 25),
    ]
    for damage, changed in ways:
        assert bench.try_one(source, damage, changed) is None
    assert bench.runs >= len(ways)
