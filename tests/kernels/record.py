# SPDX-License-Identifier: MIT
"""docs/kernels.jsonl: the last results of each kernel's steps, one kernel a line.

The long form of all steps on all kernels takes hours, so steps may be run separately, and the page
combines their results.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.kernels.fetch import KERNELS
from tests.kernels.outcome import Outcome

_FILE: Final = Path(__file__).parents[2] / "docs" / "kernels.jsonl"


def read(file: Path = _FILE) -> list[Outcome]:
    """The recorded results, in the order of the kernels' ages."""
    found = msgspec.json.Decoder(Outcome).decode_lines(file.read_bytes()) if file.exists() else ()
    return sorted(found, key=lambda outcome: list(KERNELS).index(outcome.name))


def write(outcomes: Sequence[Outcome], file: Path = _FILE) -> None:
    """Replace the recorded results of the steps of a run.

    Results of an older package of a kernel are discarded.
    """
    known = {outcome.name: outcome for outcome in read(file)}
    for outcome in outcomes:
        before = known.get(outcome.name)
        if before is None or before.version != outcome.version:
            known[outcome.name] = outcome
        else:
            before.take_over(outcome)
    file.write_bytes(msgspec.json.Encoder(order="sorted").encode_lines(known.values()))
