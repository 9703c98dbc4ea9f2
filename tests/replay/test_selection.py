# SPDX-License-Identifier: MIT
"""Which packets are shown."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from nfq_guard.errors import UsageError
from nfq_guard.finding import Reason
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.selection import Selection, parse_flow
from nfq_guard.replay.settings import ReplaySettings
from tests.support.conversation import Conversation


def shown(talk: Conversation, selection: Selection) -> list[int]:
    replayer = Replayer(ReplaySettings(every=True))
    outcomes = [*replayer.replay(talk.frames), *replayer.finish()]
    return [outcome.frame.number for outcome in outcomes if selection.takes(outcome)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("10.0.0.1:40000-10.0.0.2:80", [1, 2, 3, 4]),
        ("10.0.0.2:80-10.0.0.1:40000", [1, 2, 3, 4]),
        ("10.0.0.1-10.0.0.2:*", [1, 2, 3, 4]),
        ("10.0.0.1:40001-10.0.0.2:80", []),
        ("[fd00::1]:40000-[fd00::2]:80", []),
    ],
)
def test_flow(text: str, numbers: list[int]) -> None:
    """Both directions, and an ICMP error about it; not the frame that is no packet."""
    talk = Conversation()
    talk.open()
    quoted = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80)
    talk.add(bytes(IP(src="10.9.9.9", dst="10.0.0.1") / ICMP(type=3, code=4) / quoted))
    talk.add(b"")
    assert shown(talk, Selection(flow=parse_flow(text))) == numbers


def test_flow_ipv6() -> None:
    talk = Conversation(family=6)
    talk.open()
    assert shown(talk, Selection(flow=parse_flow("[fd00::1]:40000-[fd00::2]:80"))) == [1, 2, 3]
    assert shown(talk, Selection(flow=parse_flow("[fd00::1]-[fd00::2]"))) == [1, 2, 3]


def test_reasons() -> None:
    talk = Conversation()
    talk.open()
    talk.client("SF", 1)
    talk.client("A", 1, 90_000)
    assert shown(talk, Selection(reasons=frozenset({Reason.ACK_OVER}))) == [5]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1:1",
        "10.0.0.1:1-",
        "10.0.0.1:x-10.0.0.2:1",
        "10.0.0.1:70000-10.0.0.2:1",
        "fd00::1:1-fd00::2:1",
    ],
)
def test_wrong_flow(text: str) -> None:
    with pytest.raises(UsageError, match="--flow: expected"):
        parse_flow(text)
