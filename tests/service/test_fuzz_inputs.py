# SPDX-License-Identifier: MIT
"""The short form of `make fuzz-inputs`."""

import contextlib
import random
from pathlib import Path

import pytest

from tests.fuzz_inputs import damaged, fuzz, targets


def test_damaged_inputs_are_read_or_refused() -> None:
    counts = fuzz(7, 1500)
    assert sum(counts.values()) == 1500
    assert len(counts) == 8


def test_the_seeds_are_inputs_that_are_taken(tmp_path: Path) -> None:
    """A seed that is refused at once would leave most of its reader untested."""
    with contextlib.ExitStack() as stack:
        found = targets(tmp_path, stack)
        for target in found.values():
            assert len(set(target.seeds)) > 1
            for seed in target.seeds:
                target.read(seed)
    rng = random.Random(1)  # noqa: S311 - reproducible, no secret
    assert damaged(rng, found["log"].seeds) != damaged(rng, found["log"].seeds)


def test_a_reader_that_raises_is_told_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_octets: bytes) -> None:
        raise KeyError

    monkeypatch.setattr("tests.fuzz_inputs.snapshot_of", lambda octets, _wanted: broken(octets))
    with pytest.raises(AssertionError, match="netlink, input"):
        fuzz(7, 100)
