# SPDX-License-Identifier: MIT
"""The field table is total: every row is taken from a packet and has its place among the others."""

import pytest

from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import (
    IPS_DST_NAT,
    IPS_DYING,
    IPS_SEEN_REPLY,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    TcpState,
)
from nfq_guard.policy.fields import FIELD_BY_NAME, FIELDS, Field, Kind, name_of, number_of
from nfq_guard.policy.intervals import ABSENT, contains, covers, everything
from nfq_guard.policy.model import Condition, condition_numbers
from nfq_guard.policy.values import parse_value
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, RST, Malformed, Packet, Queued, Segment
from tests.support.policies import Case

_CLIENT, _SERVER = bytes([10, 0, 0, 1]), bytes([192, 0, 2, 1])
_SEGMENT = Segment(40000, 443, seq(1), seq(2), RST | ACK, 100, 10, b"", 0)
_THERE = FlowTuple(6, _CLIENT, _SERVER, 40000, 443)
_FLOW = FlowSnapshot(
    Evidence.BPF, 1, _THERE, _THERE, IPS_SEEN_REPLY | IPS_DYING | IPS_DST_NAT, 0x20, 0, 60,
    int(TcpState.FIN_WAIT), None,
)  # fmt: skip
_PACKET = Packet(4, _CLIENT, _SERVER, 6, 60, 20, 64, 0, False, _SEGMENT)
CASE: Case = (
    Queued(b"", int(Hook.FORWARD), "eth0", "eth1", 0x10, 0),
    _PACKET,
    _FLOW,
    Finding(Reason.ACK_OVER, Breach(Reason.ACK_OVER, seq(9), seq(2), 7)),
)
# What `CASE` is in each field, as a policy would spell it; the rest of the values do not match.
VALUES: dict[str, object] = {
    "reason": "ack-over",
    "distance": 7,
    "nat": "dnat",
    "direction": "reply",
    "state": "FIN_WAIT",
    "status": "dying",
    "evidence": "bpf",
    "family": 4,
    "proto": "tcp",
    "tcp_flags": "rst !syn",
    "payload": True,
    "src": "10.0.0.1",
    "dst": "192.0.2.1",
    "sport": 40000,
    "dport": 443,
    "in": "eth0",
    "out": "eth1",
    "hook": "FORWARD",
    "packet_mark": 0x10,
    "ct_mark": 0x20,
    "leak": False,
}
NUMBERS = [field for field in FIELDS if field.kind is not Kind.PATTERN]
INTERVALS = [field for field in FIELDS if field.has_intervals]


def test_every_row_has_a_code_of_its_own() -> None:
    assert sorted(field.code for field in FIELDS) == list(range(len(FIELDS)))
    assert set(VALUES) == {field.name for field in FIELDS}


@pytest.mark.parametrize("field", INTERVALS, ids=lambda field: field.name)
def test_number_of_every_row(field: Field) -> None:
    condition = Condition(
        field=field, negated=False, values=(parse_value(field, VALUES[field.name]),)
    )
    number = number_of(field.code, *CASE)
    assert contains(condition_numbers(condition), number)
    assert not covers(condition_numbers(condition), everything(field.highest))


def test_marks_and_names_of_every_row() -> None:
    assert number_of(FIELD_BY_NAME["packet_mark"].code, *CASE) == 0x10
    assert number_of(FIELD_BY_NAME["ct_mark"].code, *CASE) == 0x20
    assert name_of(FIELD_BY_NAME["in"].code, CASE[0]) == "eth0"
    assert name_of(FIELD_BY_NAME["out"].code, CASE[0]) == "eth1"


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_numbers_are_within_their_field(field: Field) -> None:
    """Also of a packet with nothing that could be read."""
    nothing: Case = (CASE[0], Malformed("too short"), None, Finding(Reason.MALFORMED))
    for case in (CASE, nothing):
        assert ABSENT <= number_of(field.code, *case) <= field.highest


def test_needs_are_met_by_packets() -> None:
    """A number of a row that needs others comes with those in the same packet."""
    for field in FIELDS:
        met = [
            contains(need.others, number_of(FIELD_BY_NAME[need.field].code, *CASE))
            for need in field.needs
            if contains(need.numbers, number_of(field.code, *CASE))
        ]
        assert all(met)
        assert len(met) == min(1, len(field.needs))
