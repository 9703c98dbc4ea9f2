# SPDX-License-Identifier: MIT
"""docs/kernels.jsonl: what each kernel's steps found when they ran last, a kernel a line.

A long form of all steps on all kernels takes hours, so steps may be run one by one, and the page
is made from what they found together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.kernels.fetch import KERNELS
from tests.kernels.outcome import Outcome

_FILE: Final = Path(__file__).parents[2] / "docs" / "kernels.jsonl"


def read(file: Path = _FILE) -> list[Outcome]:
    """What is on record, in the order of the kernels' ages."""
    found = msgspec.json.Decoder(Outcome).decode_lines(file.read_bytes()) if file.exists() else ()
    return sorted(found, key=lambda outcome: list(KERNELS).index(outcome.name))


def write(outcomes: Sequence[Outcome], file: Path = _FILE) -> None:
    """Put what a run found in place of what is on record of its steps.

    Of a newer package of a kernel, nothing that an older one did holds.
    """
    known = {outcome.name: outcome for outcome in read(file)}
    for outcome in outcomes:
        before = known.get(outcome.name)
        if before is None or before.version != outcome.version:
            known[outcome.name] = outcome
        else:
            before.take_over(outcome)
    file.write_bytes(msgspec.json.Encoder(order="sorted").encode_lines(known.values()))
