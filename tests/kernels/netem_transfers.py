# SPDX-License-Identifier: MIT
"""Healthy transfers through a translating router, over a link that netem makes bad.

The same transfers run without a guard and with it in each of its modes, in one run
(`tests/faults/transfers.py`).
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nfq_guard.lab.netns import Namespace
from tests.faults.outcome import Outcome
from tests.faults.transfers import BadLink, compared

_DOUBLED: Final = ("netem", "duplicate", "2%")
# One packet in 128 goes the late way.
_USUAL: Final = ("netem", "loss", "1%", "delay", "4ms", "3ms")
_LATE: Final = ("netem", "loss", "1%", "delay", "250ms", "250ms")
_ONE_IN_128: Final = ("basic", "match", "meta(random mask 127 eq 0)")


@contextmanager
def _netem_on(client: Namespace, middle: Namespace, router: Namespace, _: int) -> Iterator[None]:
    """A bridge; each direction has a queue for usual packets and one for late ones.

    The kernel refuses a netem that doubles packets beside another one at the same interface.
    """
    middle.ip("link", "add", "bridge", "type", "bridge")
    for device in ("near", "far"):
        middle.ip("link", "set", device, "master", "bridge")
        tc = ("tc", "qdisc", "add", "dev", device)
        middle.run(*tc, "root", "handle", "1:", "prio", "bands", "2", "priomap", *("0",) * 16)
        middle.run(*tc, "parent", "1:1", *_USUAL)
        middle.run(*tc, "parent", "1:2", *_LATE)
        middle.run(
            "tc", "filter", "add", "dev", device, "parent", "1:", *_ONE_IN_128, "flowid", "1:2"
        )
    middle.ip("link", "set", "bridge", "up")
    for host, device in ((client, "c0"), (router, "lan")):
        host.run("tc", "qdisc", "add", "dev", device, "root", *_DOUBLED)
    yield


_NETEM: Final = BadLink(
    "a link on which netem loses 1%, doubles 2%, delays 0.8% by up to 0.5 s and reorders",
    _netem_on,
    steady=False,
)


def by_netem(folder: Path, count: int) -> Outcome:
    """Run `count` transfers in each mode; `folder` is for files of the daemons."""
    rng = random.Random(1)  # noqa: S311 - reproducible, no secret
    return compared(folder, count, rng, _NETEM)
