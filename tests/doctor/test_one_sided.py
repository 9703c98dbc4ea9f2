# SPDX-License-Identifier: MIT
"""Rules before conntrack that no other rule makes complete."""

from dataclasses import replace
from typing import Any

import pytest

from nfq_guard.doctor.one_sided import one_sided
from nfq_guard.flow import IPV4, PROTO_TCP, Hook
from nfq_guard.raw_rules import UNKNOWN_ZONE, UNTRACKED, Field, RawAct, RawRule, Span
from tests.support.packets import A4, A6


def port(field: Field, number: int) -> Span:
    return ports(field, number, number)


def ports(field: Field, low: int, high: int) -> Span:
    return Span(field, ((low.to_bytes(2, "big"), high.to_bytes(2, "big")),))


PORTS = (Field.SPORT, Field.DPORT)
REPLIES, REQUESTS = port(Field.SPORT, 80), port(Field.DPORT, 80)


def rule(*spans: Span, **changes: Any) -> RawRule:  # noqa: ANN401 - fields of the rule
    plain = RawRule(
        "hides", IPV4, PROTO_TCP, Hook.PREROUTING, "raw", RawAct.TRACKING, UNTRACKED, spans
    )
    return replace(plain, **changes)


def end(*spans: Span, **changes: Any) -> RawRule:  # noqa: ANN401 - as above
    return rule(*spans, **({"act": RawAct.END, "zone": 0, "text": "ends"} | changes))


ONE_SIDED: dict[str, tuple[list[RawRule], list[str]]] = {
    "none": ([], []),
    "replies only": ([rule(REPLIES)], ["hides"]),
    "both": ([rule(REPLIES), rule(REQUESTS)], []),
    "both, on the host": ([rule(REQUESTS), rule(REPLIES, hook=Hook.OUTPUT)], []),
    "both, by interface": (
        [
            rule(devices=(("eth0", False),)),
            rule(hook=Hook.OUTPUT, devices=(("eth0", False),)),
        ],
        [],
    ),
    "by one interface": ([rule(devices=(("eth0", False),))], ["hides"]),
    "by other interfaces": ([rule(devices=(("eth0", True),), text="not")], ["not"]),
    "sent only": ([rule(REPLIES, hook=Hook.OUTPUT)], ["hides"]),
    "everything": ([rule()], []),
    "the other in another zone": (
        [rule(REPLIES, zone=7, text="seven"), rule(REQUESTS, zone=8, text="eight")],
        ["seven", "eight"],
    ),
    "both in a zone": ([rule(REPLIES, zone=7), rule(REQUESTS, zone=7)], []),
    "queued": ([rule(act=RawAct.QUEUE, zone=0, text="queues")], ["queues"]),
    "an accept": ([end(REPLIES)], []),
    "queued SYNs": ([rule(act=RawAct.QUEUE, zone=0, opening=True)], []),
    "SYNs": ([rule(REPLIES, opening=True)], []),
    "an address that is left out": ([rule(Span(Field.SRC, ((A4, A4),), negated=True))], ["hides"]),
    "it is left out in both": (
        [
            rule(
                Span(Field.SRC, ((A4, A4),), negated=True),
                Span(Field.DST, ((A4, A4),), negated=True),
            )
        ],
        [],
    ),
    "an accept of replies in front": ([end(REPLIES), rule()], ["hides"]),
    "an accept in another chain": ([end(REPLIES, chain="other"), rule()], []),
    "an accept of replies that may be": ([end(REPLIES, certain=False), rule()], ["hides"]),
    "accepts of both in front": ([end(REPLIES), end(REQUESTS), rule()], []),
    "replies of a part": (
        [rule(ports(Field.DPORT, 1, 1024)), rule(ports(Field.SPORT, 1, 79))],
        ["hides"],
    ),
    "a gap in the replies": (
        [
            rule(ports(Field.DPORT, 1, 1024), text="requests"),
            rule(ports(Field.SPORT, 1, 79)),
            rule(ports(Field.SPORT, 81, 1024)),
        ],
        ["requests"],
    ),
    "no gap": (
        [
            rule(ports(Field.DPORT, 1, 1024)),
            rule(ports(Field.SPORT, 1, 79)),
            rule(ports(Field.SPORT, 80, 1024)),
        ],
        [],
    ),
    "a range of both ends": (
        [rule(ports(Field.DPORT, 0, 65535)), rule(ports(Field.SPORT, 0, 65535))],
        [],
    ),
    "conditions that contradict": ([rule(REPLIES, port(Field.SPORT, 81))], []),
    "decided before": ([rule(REQUESTS), rule(REPLIES), rule(zone=7)], []),
    "a zone from the packet": ([rule(zone=UNKNOWN_ZONE)], ["hides"]),
    "more rules than examples": (
        [
            *(end(port(field, number)) for number in range(1000, 1100) for field in PORTS),
            rule(REPLIES),
            rule(REQUESTS),
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", ONE_SIDED)
def test_one_sided(name: str) -> None:
    rules, found = ONE_SIDED[name]
    assert [each.text for each in one_sided(rules)] == found


def test_one_sided_in_ipv6() -> None:
    server = Span(Field.SRC, ((A6, A6),))
    one = rule(server, family=6)
    assert one_sided([one]) == [one]
    other = rule(Span(Field.DST, ((A6, A6),)), family=6)
    assert one_sided([one, other]) == []
