# SPDX-License-Identifier: MIT
"""Sends one verdict a packet, in the order of the ids, in runs of equal verdicts.

A batch verdict covers every waiting packet up to its id. It covers exactly one run because packets
are judged in the order in which they were read, and all verdicts of a turn are sent before the
next turn.
"""

from collections.abc import Sequence
from typing import Final, Protocol, final

from nfq_guard.nfqueue import requests

# Bounds the cache by mark, which is emptied at the bound. Marks come from the policy, so few are
# usual.
_PREPARED_MAX: Final = 256


class Sender(Protocol):
    """The part of the queue's socket that a sender uses."""

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
        """Send the verdicts of all packets of one turn, in one system call.

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
            kind = requests.TYPE_VERDICT_BATCH if index > first_of_run else requests.TYPE_VERDICT
            parts.append(self._message(kind, verdict, mark) + ids[index].to_bytes(4))
            if index < last:
                first_of_run = index + 1
                verdict = verdicts[first_of_run]
                mark = marks[first_of_run]
        self.messages += len(parts)
        self._send(b"".join(parts))

    def send_up_to(self, last: int, verdict: int) -> None:
        """Send `verdict` for all waiting packets with an id up to `last`."""
        self.messages += 1
        self._send(requests.verdict_up_to(self._queue_num, verdict, last))

    def _message(self, kind: int, verdict: int, mark: int | None) -> bytes:
        # One integer, because hashing and comparing a tuple of three takes longer than all the
        # rest.
        key = kind << 1 | verdict
        if mark is not None:
            key = key << 33 | 1 << 32 | mark
        message = self._prepared.get(key)
        if message is None:
            if len(self._prepared) >= _PREPARED_MAX:
                self._prepared.clear()
            message = requests.verdict(kind, self._queue_num, verdict, mark)
            self._prepared[key] = message
        return message
