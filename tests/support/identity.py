# SPDX-License-Identifier: MIT
"""Holds that each packet has one fate, at the orderly end of each daemon that a test starts.

The kernel numbers the packets of a queue. The daemon counts those that it judged, those that it
answered unread, and those whose message did not fit the socket's buffer; they are all of them.
"""

import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from nfq_guard.nfqueue.counters import QueueCounters, parse

_QUIET_S: Final = 0.005
_READINGS: Final = 4
# What becomes of a packet with a number.
_FATES: Final = ("packets", "unread_packets", "buffer_full_drops", "buffer_full_passes")


class Numbered(NamedTuple):
    """What the kernel counted in a daemon's queues until shortly before its end.

    Attributes:
        packets: Packets that were numbered, at least.
        is_exact: Whether no more came.
    """

    packets: int
    is_exact: bool


def _lines(pid: int, queues: list[int]) -> dict[int, QueueCounters]:
    """The kernel's lines about these queues of a process; empty once it has ended."""
    path = Path(f"/proc/{pid}/net/netfilter/nfnetlink_queue")
    try:
        found = parse(path.read_text(encoding="ascii"))
    except OSError:
        return {}
    return {number: line for number, line in found.items() if number in queues}


def numbered(pid: int, queues: list[int]) -> Numbered:
    """Read these queues of a daemon until no packet comes, or a few times."""
    found = _lines(pid, queues)
    is_exact = False
    for _ in range(_READINGS):
        before = found
        time.sleep(_QUIET_S)
        found = _lines(pid, queues)
        if is_exact := found == before and not any(line.waiting for line in found.values()):
            break
    return Numbered(sum(line.last_id for line in found.values()), is_exact)


def require_one_fate_each(stopped: dict[str, Any], kernel: Numbered) -> None:
    """Check the counts of the event `stopped` against each other and against the kernel's.

    Raises:
        AssertionError: They differ.
    """
    judged = stopped["packets"] - stopped.get("judging_failures", 0)
    for kind in ("reasons", "actions", "rules"):
        assert sum(stopped[kind].values()) == judged, f"{kind}: not {judged} in {stopped}"
    fates = {name: stopped.get(name, 0) for name in _FATES}
    found = sum(fates.values())
    assert found >= kernel.packets, f"{fates}: {kernel}"
    assert not kernel.is_exact or found == kernel.packets, f"{fates}: {kernel}"
