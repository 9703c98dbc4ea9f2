# SPDX-License-Identifier: MIT
"""The fate of flows, packet by packet."""

from nfq_guard.flow import PROTO_TCP, FlowKey, key_of_ends
from nfq_guard.resets import RESET_WITHIN_S
from nfq_guard.whatif.conversations import MOST_PACKETS, Conversations, Fate

FLOW, OTHER, THIRD = (key_of_ends(PROTO_TCP, b"here", b"there", 1, port) for port in (2, 3, 4))


class Recording:
    """A recording, packet by packet; judged packets have letters as names."""

    def __init__(self, most_flows: int = 10) -> None:
        self.flows: Conversations[str] = Conversations(most_flows)
        self.fates: dict[str, Fate] = {}

    def saw(self, time_s: float, key: FlowKey = FLOW, *, rst: bool = False) -> "Recording":
        self.fates |= dict(self.flows.saw(key, time_s, is_rst=rst))
        return self

    def judged(self, time_s: float, name: str, key: FlowKey = FLOW) -> "Recording":
        self.saw(time_s, key)
        self.fates |= dict(self.flows.awaits(key, time_s, name))
        return self

    def end(self) -> dict[str, Fate]:
        self.fates |= dict(self.flows.end())
        return self.fates


def test_reset_soon_after() -> None:
    assert Recording().judged(0, "a").saw(0.1).saw(0.2, rst=True).end() == {"a": Fate.RESET}


def test_lived_on() -> None:
    assert Recording().judged(0, "a").saw(0.1).end() == {"a": Fate.LIVED}


def test_lived_on_later() -> None:
    story = Recording().judged(0, "a").saw(RESET_WITHIN_S + 1)
    assert story.fates == {"a": Fate.LIVED}


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
