# SPDX-License-Identifier: MIT
import struct

from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.nfqueue import requests
from nfq_guard.nfqueue.verdicts import VerdictSender


class FakeKernel:
    """Waiting packets, and the effect of verdict messages on them (kernel.md 5)."""

    def __init__(self, waiting: list[int]) -> None:
        self.waiting = list(waiting)
        self.given: dict[int, tuple[int, int | None]] = {}
        self.calls = 0

    def send(self, message: bytes) -> int:
        self.calls += 1
        at = 0
        while at < len(message):
            length, kind = struct.unpack_from("=IH", message, at)
            self._act(kind, message[at + 20 : at + length])
            at += length
        return len(message)

    def _act(self, kind: int, attributes: bytes) -> None:
        mark: int | None = None
        if len(attributes) == 20:
            (mark,) = struct.unpack_from("!I", attributes, 4)
            attributes = attributes[8:]
        verdict, packet_id = struct.unpack_from("!II", attributes, 4)
        if kind == requests.TYPE_VERDICT:
            hit = [packet_id]
        else:
            hit = [one for one in self.waiting if one <= packet_id]
        assert hit, "ENOENT"
        for one in hit:
            self.waiting.remove(one)
            self.given[one] = (verdict, mark)


answers = st.tuples(st.integers(0, 1), st.sampled_from([None, 0, 0x1000]))


@given(st.lists(answers, max_size=80), st.integers(1, 50), st.integers(1, 3))
def test_each_packet_gets_its_own_verdict(
    wanted: list[tuple[int, int | None]], first: int, step: int
) -> None:
    """In any order of verdicts, and with gaps in the ids."""
    ids = [first + index * step for index in range(len(wanted))]
    later = first + len(wanted) * step
    kernel = FakeKernel([*ids, later])
    VerdictSender(kernel, 7).send(ids, [w[0] for w in wanted], [w[1] for w in wanted])
    assert kernel.given == dict(zip(ids, wanted, strict=True))
    assert kernel.waiting == [later]
    assert kernel.calls == (1 if wanted else 0)


def test_equal_verdicts_take_one_message() -> None:
    kernel = FakeKernel(list(range(64)))
    sender = VerdictSender(kernel, 7)
    sender.send(list(range(64)), [1] * 64, [None] * 64)
    assert sender.messages == 1


def test_prepared_messages_are_bounded() -> None:
    """Even with more marks than a policy can have, memory stays bounded."""
    sender = VerdictSender(FakeKernel(list(range(1000))), 7)
    sender.send(list(range(1000)), [1] * 1000, list(range(1000)))
    assert len(sender._prepared) <= 256  # the bound is on memory, which nothing else shows
