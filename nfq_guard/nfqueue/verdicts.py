# SPDX-License-Identifier: MIT
"""Verdicts: one a packet, in the order of the ids, sent in runs of equal ones.

A batch verdict covers every waiting packet up to its id. That is exact as long as packets are
judged in the order in which they were read, and a turn's packets are all answered before the
next turn: what waits below an id is then precisely the run that it ends.
"""

from collections.abc import Sequence
from typing import Final, Protocol, final

from nfq_guard.nfqueue import netlink

# Marks come from the policy, which is small; a bound all the same, emptied when it is reached.
_PREPARED_MAX: Final = 256


class Sender(Protocol):
    """The part of the queue's socket that is needed here."""

    def send(self, message: bytes, /) -> int:
        """Hand messages to the kernel, which acts on them before this returns."""


@final
class VerdictSender:
    """Sends the verdicts of one queue.

    Attributes:
        messages: Verdict messages sent; fewer than packets where runs were long.
    """

    def __init__(self, sender: Sender, queue_num: int) -> None:
        """Send through `sender`, the socket that bound `queue_num`."""
        self.messages = 0
        self._send = sender.send
        self._queue_num = queue_num
        self._prepared: dict[int, bytes] = {}

    def send(
        self, ids: Sequence[int], verdicts: Sequence[int], marks: Sequence[int | None]
    ) -> None:
        """Answer all packets of one turn, in one system call.

        Args:
            ids: Packet ids as they were read, each once.
            verdicts: 0 drop or 1 accept, one an id.
            marks: Packet mark to set, or None, one an id.
        """
        if not ids:
            return
        parts: list[bytes] = []
        last = len(ids) - 1
        first_of_run = 0
        verdict = verdicts[0]
        mark = marks[0]
        for index in range(last + 1):
            if index < last and verdicts[index + 1] == verdict and marks[index + 1] == mark:
                continue
            kind = netlink.TYPE_VERDICT_BATCH if index > first_of_run else netlink.TYPE_VERDICT
            parts.append(self._message(kind, verdict, mark) + ids[index].to_bytes(4))
            if index < last:
                first_of_run = index + 1
                verdict = verdicts[first_of_run]
                mark = marks[first_of_run]
        self.messages += len(parts)
        self._send(b"".join(parts))

    def _message(self, kind: int, verdict: int, mark: int | None) -> bytes:
        # One number: to hash a tuple of three and to compare it takes longer than all the rest.
        key = kind << 1 | verdict
        if mark is not None:
            key = key << 33 | 1 << 32 | mark
        message = self._prepared.get(key)
        if message is None:
            if len(self._prepared) >= _PREPARED_MAX:
                self._prepared.clear()
            message = netlink.verdict(kind, self._queue_num, verdict, mark)
            self._prepared[key] = message
        return message
