# SPDX-License-Identifier: MIT
"""The fate of flows, packet by packet."""

from collections.abc import Iterable

from nfq_guard.flow import PROTO_TCP, FlowKey, key_of_ends
from nfq_guard.resets import RESET_WITHIN_S
from nfq_guard.whatif.conversations import MOST_PACKETS, Conversations, Fate, Seen, Settled

FLOW, OTHER, THIRD = (key_of_ends(PROTO_TCP, b"here", b"there", 1, port) for port in (2, 3, 4))


class Recording:
    """A recording, packet by packet; judged packets have letters as names."""

    def __init__(self, most_flows: int = 10, most_waiting: int = 10_000) -> None:
        self.flows: Conversations[str] = Conversations(most_flows, most_waiting)
        self.fates: dict[str, Fate] = {}
        self.counts: dict[tuple[str, Fate], int] = {}
        self.exact = True
        self.number = 0

    def saw(self, time_s: float, key: FlowKey = FLOW, *, rst: bool = False) -> "Recording":
        self.number += 1
        seen = Seen(number=self.number, first_s=time_s, last_s=time_s, is_rst=rst)
        self._settle(self.flows.saw(key, seen))
        return self

    def judged(
        self,
        time_s: float,
        name: str,
        key: FlowKey = FLOW,
        *,
        last_s: float | None = None,
        count: int = 1,
        rst: bool = False,
        again: bool = False,
    ) -> "Recording":
        """One event; `again`: more packets of the last one, such as those of another distance."""
        self.number += not again
        last = time_s if last_s is None else last_s
        seen = Seen(number=self.number, first_s=time_s, last_s=last, is_rst=rst)
        self._settle(self.flows.awaits(key, seen, count, name))
        return self

    def end(self) -> dict[str, Fate]:
        self._settle(self.flows.end())
        return self.fates

    def _settle(self, found: Iterable[Settled[str]]) -> None:
        for one in found:
            self.fates[one.packet] = one.fate
            place = (one.packet, one.fate)
            self.counts[place] = self.counts.get(place, 0) + one.count
            self.exact = self.exact and one.exact


def test_reset_soon_after() -> None:
    assert Recording().judged(0, "a").saw(0.1).saw(0.2, rst=True).end() == {"a": Fate.RESET}


def test_lived_on() -> None:
    assert Recording().judged(0, "a").saw(0.1).end() == {"a": Fate.LIVED}


def test_lived_on_later() -> None:
    assert Recording().judged(0, "a").saw(RESET_WITHIN_S + 1).end() == {"a": Fate.LIVED}


def test_late_reset_of_a_living_flow() -> None:
    """An RST minutes later was not caused by this packet."""
    story = Recording().judged(0, "a").saw(1).judged(2, "b").saw(RESET_WITHIN_S + 1, rst=True)
    assert story.end() == {"a": Fate.LIVED, "b": Fate.RESET}


def test_late_reset_is_not_a_sign_of_life() -> None:
    story = Recording().judged(0, "a").saw(RESET_WITHIN_S + 1, rst=True)
    assert story.end() == {"a": Fate.UNKNOWN}


def test_nothing_more() -> None:
    assert Recording().judged(0, "a").saw(1, OTHER).end() == {"a": Fate.UNKNOWN}


def test_flows_are_bounded() -> None:
    """The flow that was silent longest is evicted."""
    story = Recording(2).judged(0, "a").judged(0, "b", OTHER).saw(1).judged(2, "c", THIRD)
    assert story.fates == {"b": Fate.UNKNOWN}
    assert story.end() == {"a": Fate.LIVED, "b": Fate.UNKNOWN, "c": Fate.UNKNOWN}


def test_packets_of_a_flow_are_bounded() -> None:
    story = Recording()
    for number in range(MOST_PACKETS + 1):
        story.judged(0, str(number))
    assert story.fates == {"0": Fate.LIVED}
    fates = story.end()
    assert len(fates) == MOST_PACKETS + 1
    assert fates[str(MOST_PACKETS)] is Fate.UNKNOWN
    assert fates[str(MOST_PACKETS - 1)] is Fate.LIVED


def test_flows_that_wait_for_too_much() -> None:
    story = Recording(most_waiting=2).judged(0, "a").judged(0, "b", OTHER).judged(1, "c")
    assert story.fates == {"b": Fate.UNKNOWN}
    assert story.end() == {"a": Fate.LIVED, "b": Fate.UNKNOWN, "c": Fate.UNKNOWN}


def test_resets_of_a_flow_are_bounded() -> None:
    story = Recording().judged(0, "a")
    for number in range(2 * MOST_PACKETS):
        story.saw(100 + number, rst=True)
    assert story.fates == {"a": Fate.UNKNOWN}


def test_the_times_decide_and_not_the_order() -> None:
    """An RST of the past, and packets of an older file behind a newer one."""
    assert Recording().judged(100, "a").saw(50, rst=True).end() == {"a": Fate.UNKNOWN}
    story = Recording().judged(200, "new").judged(50, "old").judged(49, "rst", rst=True)
    assert story.end() == {"new": Fate.UNKNOWN, "old": Fate.LIVED, "rst": Fate.LIVED}
    story = Recording().judged(103, "rst", rst=True).judged(100, "a").judged(101, "b")
    assert story.end() == {"rst": Fate.UNKNOWN, "a": Fate.RESET, "b": Fate.RESET}
    assert Recording().saw(9).judged(5, "b").saw(7).saw(6).end() == {"b": Fate.LIVED}


def test_the_order_decides_about_equal_times() -> None:
    story = Recording().judged(1, "a").judged(1, "rst", rst=True).judged(1, "b")
    assert story.end() == {"a": Fate.RESET, "rst": Fate.LIVED, "b": Fate.UNKNOWN}


def test_an_event_of_several_packets_is_written_behind_the_reset() -> None:
    """As with log_interval_s = 10: all of them were followed by it."""
    story = Recording().judged(0, "first").judged(3, "rst", rst=True)
    story.judged(1, "near", last_s=2.9, count=20).judged(1, "far", last_s=2.9, count=30, again=True)
    story.end()
    assert story.counts == {
        ("first", Fate.RESET): 1,
        ("rst", Fate.UNKNOWN): 1,
        ("near", Fate.RESET): 20,
        ("far", Fate.RESET): 30,
    }
    assert story.exact


def test_packets_of_one_event_do_not_show_that_it_continued() -> None:
    story = Recording().judged(1, "near", last_s=3, count=20)
    story.judged(1, "far", last_s=3, count=30, again=True)
    assert story.end() == {"near": Fate.UNKNOWN, "far": Fate.UNKNOWN}
    assert story.exact


def test_a_reset_among_the_packets_of_one_event() -> None:
    """Those before it were followed by it; how many is an estimate."""
    story = Recording().judged(0, "a", last_s=10, count=100).judged(4, "rst", rst=True)
    story.judged(7, "b")
    story.end()
    assert story.counts == {
        ("a", Fate.RESET): 40,
        ("a", Fate.LIVED): 30,
        ("a", Fate.UNKNOWN): 30,
        ("rst", Fate.LIVED): 1,
        ("b", Fate.LIVED): 1,
    }
    assert not story.exact


def test_several_resets_of_one_event() -> None:
    """Of those between the first and the last, the times are not known."""
    story = Recording().judged(10, "a").judged(0, "rst", last_s=30, count=9, rst=True)
    story.judged(0, "rst", last_s=30, count=2, rst=True, again=True)
    assert story.end()["a"] is Fate.UNKNOWN
    assert story.counts["rst", Fate.LIVED] + story.counts["rst", Fate.UNKNOWN] == 11
    assert not story.exact
    certain = Recording().judged(28, "a").judged(0, "rst", last_s=30, count=9, rst=True)
    assert certain.end()["a"] is Fate.RESET
