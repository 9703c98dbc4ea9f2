# SPDX-License-Identifier: MIT
"""The SCTP and GRE trackers, packet by packet (kernel.md 1.14 and 1.15)."""

from dataclasses import dataclass, field

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.conntrack.table import (
    CT_ESTABLISHED,
    CT_INVALID,
    CT_NEW,
    CTSTATES,
    FlowTable,
)
from nfq_guard.diagnose import diagnose
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import (
    IPS_ASSURED,
    PROTO_GRE,
    PROTO_SCTP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    SctpState,
)
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, Queued
from tests.support.packets import A4, B4, ip
from tests.support.sctp import chunk, init, sctp

DATA, HEARTBEAT, HEARTBEAT_ACK, ABORT = 0, 4, 5, 6
SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK, COMPLETE = 7, 8, 9, 10, 11, 14
T = 1
# The tags of the two ends in `established`: what packets to the client carry, and to the server.
CLIENT, SERVER = 0xAAAA, 0xBBBB


@dataclass
class Talk:
    """Packets between two hosts through one table."""

    table: FlowTable = field(default_factory=lambda: FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS))
    now: float = 0.0
    octets: bytes = b""

    def send(self, direction: int, tag: int, *chunks: bytes) -> int:
        ends = (A4, B4, 5000, 2905) if direction == 0 else (B4, A4, 2905, 5000)
        self.octets = sctp(*ends, tag, *chunks)
        return self.table.track(decode(self.octets), self.now)

    def established(self) -> "Talk":
        for direction, tag, one in (
            (0, 0, init(1, CLIENT)),
            (1, CLIENT, init(2, SERVER)),
            (0, SERVER, chunk(COOKIE_ECHO)),
            (1, CLIENT, chunk(COOKIE_ACK)),
        ):
            assert self.send(direction, tag, one) != CT_INVALID
        return self

    @property
    def snapshot(self) -> FlowSnapshot | None:
        return self.table.lookup([FlowTuple(PROTO_SCTP, A4, B4, 5000, 2905)])[0]

    @property
    def state(self) -> str:
        snapshot = self.snapshot
        assert snapshot is not None
        assert snapshot.association is not None
        return SctpState(snapshot.association.state).name

    @property
    def timeout(self) -> int:
        assert self.snapshot is not None
        return self.snapshot.timeout_s

    @property
    def finding(self) -> Finding:
        """The guard's finding for the last packet, from the flow after it."""
        queued = Queued(self.octets, Hook.PREROUTING, "", "", 0, CHECKSUM_GOOD)
        snapshot = self.table.snapshot()
        packet = decode(self.octets)
        return diagnose(queued, packet, snapshot, Evidence.REPLAY, KERNEL_6_1, DEFAULT_SYSCTLS)

    def refused(self, reason: Reason, detail: str) -> bool:
        """Whether the last packet is INVALID for a reason, by the table and by the diagnosis."""
        found = self.finding
        return (self.table.reason, found.reason, found.detail) == (reason, reason, detail)


def test_an_association_from_beginning_to_end() -> None:
    talk = Talk()
    lived = []
    for direction, tag, *chunks in (
        (0, 0, init(1, CLIENT)),
        (1, CLIENT, init(2, SERVER)),
        (0, SERVER, chunk(COOKIE_ECHO), chunk(DATA, bytes(13))),
        (1, CLIENT, chunk(COOKIE_ACK), chunk(3, bytes(12))),
        (0, SERVER, chunk(SHUTDOWN, bytes(4))),
        (1, CLIENT, chunk(SHUTDOWN_ACK)),
        (0, SERVER, chunk(COMPLETE)),
    ):
        code = talk.send(direction, tag, *chunks)
        lived.append((str(CTSTATES[code]), talk.state, talk.timeout))
    assert lived == [
        ("NEW", "CLOSED", 10),
        ("ESTABLISHED", "COOKIE_WAIT", 3),
        ("ESTABLISHED", "COOKIE_ECHOED", 3),
        ("ESTABLISHED", "ESTABLISHED", 210),
        ("ESTABLISHED", "SHUTDOWN_SENT", 3),
        ("ESTABLISHED", "SHUTDOWN_ACK_SENT", 3),
        ("ESTABLISHED", "CLOSED", 10),
    ]
    assert talk.snapshot is not None
    assert talk.snapshot.status & IPS_ASSURED


def test_a_repeated_init_does_not_extend_the_entry() -> None:
    talk = Talk()
    talk.send(0, 0, init(1, CLIENT))
    talk.now = 4.0
    assert talk.send(0, 0, init(1, CLIENT)) == CT_NEW
    assert talk.timeout == 6
    talk.now = 10.0
    assert talk.send(1, CLIENT, init(2, SERVER)) == CT_INVALID
    assert talk.refused(Reason.NO_ENTRY, "init-ack without an entry")


@pytest.mark.parametrize(
    ("chunks", "detail"),
    [
        ((), "no chunk"),
        ((chunk(DATA)[:2] + b"\0\0",), "chunk of length 0"),
        ((init(1, 7), chunk(DATA)), "a chunk that must be alone is not"),
        ((chunk(DATA), init(2, 7)), "a chunk that must be alone is not"),
        ((chunk(DATA), chunk(COOKIE_ECHO)), "a chunk that must come first does not"),
    ],
)
def test_order_of_chunks(chunks: tuple[bytes, ...], detail: str) -> None:
    for talk in (Talk(), Talk().established()):
        assert talk.send(0, SERVER, *chunks) == CT_INVALID
        assert talk.refused(Reason.MALFORMED, detail)


def test_an_init_cut_short() -> None:
    for talk in (Talk(), Talk().established()):
        assert talk.send(0, 0, init(1, 7)[:16]) == CT_INVALID
        assert talk.refused(Reason.MALFORMED, "INIT chunk cut short")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DATA, "data"), (3, "sack"), (ABORT, "abort"), (COOKIE_ACK, "cookie-ack"),
        (COMPLETE, "shutdown-complete"), (64, "chunk 64"), (SHUTDOWN, "shutdown"),
        (ERROR, "error"), (COOKIE_ECHO, "cookie-echo"),
    ],
)  # fmt: skip
def test_without_an_entry(kind: int, name: str) -> None:
    talk = Talk()
    assert talk.send(0, 7, chunk(kind)) == CT_INVALID
    assert talk.refused(Reason.NO_ENTRY, f"{name} without an entry")
    assert len(talk.table) == 0


def test_an_init_with_a_tag() -> None:
    for talk in (Talk(), Talk().established()):
        assert talk.send(0, 9, init(1, 7)) == CT_INVALID
        assert talk.refused(Reason.BAD_TAG, "verification tag of another association")


def test_a_shutdown_ack_opens_for_its_answer() -> None:
    talk = Talk()
    assert talk.send(0, 7, chunk(SHUTDOWN_ACK)) == CT_NEW
    assert talk.state == "SHUTDOWN_ACK_SENT"
    assert talk.send(1, 7, chunk(COMPLETE)) == CT_ESTABLISHED
    assert talk.state == "CLOSED"


@pytest.mark.parametrize("kind", [COOKIE_ECHO, SHUTDOWN, 9])
def test_a_heartbeat_behind_another_chunk_has_the_tag_of_its_end(kind: int) -> None:
    """Without it, these open an association with tag 0 alone."""
    assert Talk().send(0, SERVER, chunk(kind)) == CT_INVALID
    talk = Talk()
    assert talk.send(0, SERVER, chunk(kind), chunk(HEARTBEAT)) == CT_NEW
    assert talk.send(0, SERVER, chunk(DATA, bytes(13))) == CT_NEW
    assert talk.send(0, SERVER + 1, chunk(DATA, bytes(13))) == CT_INVALID


def test_a_heartbeat_opens_the_second_path() -> None:
    talk = Talk()
    assert talk.send(0, SERVER, chunk(HEARTBEAT)) == CT_NEW
    assert (talk.state, talk.timeout) == ("HEARTBEAT_SENT", 30)
    assert talk.send(1, CLIENT, chunk(ABORT)) == CT_INVALID
    assert talk.refused(Reason.BAD_TAG, "verification tag of another association")
    assert talk.send(1, CLIENT, chunk(HEARTBEAT_ACK)) == CT_ESTABLISHED
    assert (talk.state, talk.timeout) == ("ESTABLISHED", 210)
    assert talk.snapshot is not None
    assert talk.snapshot.status & IPS_ASSURED
    assert talk.send(0, SERVER, chunk(DATA)) == CT_ESTABLISHED


def test_a_chunk_that_the_state_forbids() -> None:
    talk = Talk()
    talk.send(0, SERVER, chunk(HEARTBEAT))
    assert talk.send(1, 0, init(1, 7)) == CT_INVALID
    assert talk.refused(Reason.BAD_TRANSITION, "reply init in HEARTBEAT_SENT")


@pytest.mark.parametrize("kind", [ABORT, COMPLETE])
def test_the_t_bit_reflects_the_tag(kind: int) -> None:
    for flags, tag, passes in (
        (0, SERVER, True), (0, CLIENT, False), (T, CLIENT, True), (T, SERVER, False),
    ):  # fmt: skip
        talk = Talk().established()
        assert (talk.send(0, tag, chunk(kind, b"", flags)) == CT_ESTABLISHED) is passes
        if not passes:
            assert talk.refused(Reason.BAD_TAG, "verification tag of another association")


@pytest.mark.parametrize("kind", [DATA, SHUTDOWN, COOKIE_ECHO, COOKIE_ACK, HEARTBEAT_ACK])
def test_the_tag_of_another_association(kind: int) -> None:
    talk = Talk().established()
    assert talk.send(1, 0x1234, chunk(kind)) == CT_INVALID
    assert talk.refused(Reason.BAD_TAG, "verification tag of another association")
    assert talk.send(1, CLIENT, chunk(kind)) == CT_ESTABLISHED


def test_a_heartbeat_with_another_tag_waits_for_its_answer() -> None:
    """It passes but does not extend the entry; its answer sets the tags."""
    talk = Talk().established()
    talk.now = 5.0
    assert talk.send(0, 0x1234, chunk(HEARTBEAT), chunk(DATA)) == CT_INVALID
    assert talk.refused(Reason.BAD_TAG, "verification tag of another association")
    assert talk.send(0, 0x1234, chunk(HEARTBEAT)) == CT_ESTABLISHED
    assert talk.timeout == 205
    assert talk.send(0, 0x4321, chunk(HEARTBEAT_ACK)) == CT_INVALID
    assert talk.send(1, 0x4321, chunk(HEARTBEAT_ACK)) == CT_ESTABLISHED
    assert talk.timeout == 210
    assert talk.send(1, 0x4321, chunk(DATA)) == CT_ESTABLISHED
    assert talk.send(1, CLIENT, chunk(DATA)) == CT_INVALID
    assert talk.send(0, SERVER, chunk(HEARTBEAT)) == CT_ESTABLISHED
    assert talk.send(0, SERVER, chunk(DATA)) == CT_ESTABLISHED


@pytest.mark.parametrize("kind", [HEARTBEAT, HEARTBEAT_ACK])
def test_a_heartbeat_with_the_right_tag_ends_the_wait(kind: int) -> None:
    talk = Talk().established()
    talk.send(0, 0x1234, chunk(HEARTBEAT))
    assert talk.send(0, SERVER, chunk(kind)) == CT_ESTABLISHED
    assert talk.send(1, 0x4321, chunk(HEARTBEAT_ACK)) == CT_INVALID


def test_two_heartbeats_with_another_tag_in_one_packet() -> None:
    talk = Talk().established()
    assert talk.send(0, 0x1234, chunk(HEARTBEAT), chunk(HEARTBEAT)) == CT_INVALID
    assert talk.refused(Reason.BAD_TAG, "verification tag of another association")


def test_an_invalid_packet_keeps_what_its_first_chunks_did() -> None:
    talk = Talk()
    for direction, tag, one in (
        (0, 0, init(1, CLIENT)), (1, CLIENT, init(2, SERVER)), (0, SERVER, chunk(COOKIE_ECHO)),
    ):  # fmt: skip
        talk.send(direction, tag, one)
    assert talk.send(1, CLIENT, chunk(COOKIE_ACK), chunk(ABORT, b"", T)) == CT_INVALID
    assert talk.state == "ESTABLISHED"
    assert talk.snapshot is not None
    assert talk.snapshot.status & IPS_ASSURED


def test_what_the_diagnosis_cannot_know() -> None:
    """A packet whose last chunks were not copied, and one that fits by the time of the lookup."""
    talk = Talk().established()
    talk.send(0, SERVER, chunk(DATA, bytes(40)), chunk(DATA, bytes(40)))
    assert talk.finding == Finding(Reason.RACED, None, "fits the current state of the flow")
    whole = talk.octets
    talk.octets = whole[:-30]
    assert talk.finding.reason is Reason.RACED
    talk.octets = whole[:-46]
    assert talk.finding == Finding(Reason.UNSUPPORTED, None, "not all of its chunks were captured")
    queued = Queued(whole, Hook.PREROUTING, "", "", 0, CHECKSUM_GOOD)
    snapshot = talk.snapshot
    assert snapshot is not None
    snapshot.association = None
    for evidence, flow, reason in (
        (Evidence.NONE, None, Reason.UNSUPPORTED),
        (Evidence.CTNETLINK, snapshot, Reason.UNSUPPORTED),
    ):
        found = diagnose(queued, decode(whole), flow, evidence, KERNEL_6_1, DEFAULT_SYSCTLS)
        assert found.reason is reason
    unknown = talk.snapshot
    assert unknown is not None
    assert unknown.association is not None
    unknown.association.state = SctpState.HEARTBEAT_ACKED
    found = diagnose(
        queued, decode(whole), unknown, Evidence.CTNETLINK, KERNEL_6_1, DEFAULT_SYSCTLS
    )
    assert found == Finding(Reason.UNSUPPORTED, None, "the flow is known, its state is not")
    opening = sctp(A4, B4, 1, 2, 0, init(1, 7))
    found = diagnose(queued, decode(opening), None, Evidence.CTNETLINK, KERNEL_6_1, DEFAULT_SYSCTLS)
    assert found.reason is Reason.RACED


def test_a_restart_needs_its_init() -> None:
    """An INIT ACK passes if the other end has sent an INIT, and then with any tag."""
    talk = Talk().established()
    assert talk.send(0, SERVER, init(2, 0x2222)) == CT_INVALID
    assert talk.refused(Reason.BAD_TAG, "answers an INIT that was not seen")
    assert talk.send(1, 0, init(1, 0x1111)) == CT_ESTABLISHED
    assert talk.send(0, 0x1111, init(2, 0x2222)) == CT_ESTABLISHED


def test_a_cookie_ack_ends_what_inits_began() -> None:
    talk = Talk().established()
    assert talk.send(1, 0, init(1, 0x1111)) == CT_ESTABLISHED
    assert talk.send(1, CLIENT, chunk(COOKIE_ACK)) == CT_ESTABLISHED
    assert talk.send(0, 0x1111, init(2, 0x2222)) == CT_INVALID


def test_when_both_send_an_init() -> None:
    """Each INIT ACK has the tag of its sender's own INIT; a third INIT begins anew."""
    talk = Talk()
    assert talk.send(0, 0, init(1, CLIENT)) == CT_NEW
    assert talk.send(1, 0, init(1, SERVER)) == CT_ESTABLISHED
    assert talk.send(1, CLIENT, init(2, 0x1234)) == CT_INVALID
    assert talk.refused(Reason.BAD_TAG, "answers an INIT that was not seen")
    assert talk.send(1, 0, init(1, SERVER)) == CT_ESTABLISHED
    assert talk.send(1, CLIENT, init(2, 0x1234)) == CT_INVALID
    assert talk.send(0, 0, init(1, 0x5678)) == CT_ESTABLISHED
    assert talk.send(1, 0x5678, init(2, 0x1234)) == CT_ESTABLISHED


def gre(src: bytes, dst: bytes, call: int, protocol: int = 0x880B) -> bytes:
    """A packet of PPTP."""
    octets = b"\x30\x01" + protocol.to_bytes(2) + b"\0\4" + call.to_bytes(2) + bytes(8)
    return ip(src, dst, PROTO_GRE, octets)


def test_gre_without_keys_is_one_flow() -> None:
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    there, back = (ip(*ends, PROTO_GRE, b"\0\0\x08\0" + bytes(30)) for ends in ((A4, B4), (B4, A4)))
    codes = [table.track(decode(octets), 0.0) for octets in (there, back, there)]
    assert codes == [CT_NEW, CT_ESTABLISHED, CT_ESTABLISHED]
    (snapshot,) = table.lookup([FlowTuple(PROTO_GRE, A4, B4, 0, 0)])
    assert snapshot is not None
    assert (snapshot.timeout_s, snapshot.status & IPS_ASSURED) == (180, IPS_ASSURED)


def test_each_direction_of_pptp_is_a_flow_of_its_own() -> None:
    """Its call identifier is the receiver's; only the helper of PPTP joins the two."""
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    for octets in (gre(A4, B4, 7), gre(B4, A4, 9), gre(A4, B4, 7), gre(A4, B4, 8)):
        assert table.track(decode(octets), 0.0) == CT_NEW
    assert len(table) == 3
    (snapshot,) = table.lookup([FlowTuple(PROTO_GRE, A4, B4, 0, 7)])
    assert snapshot is not None
    assert (snapshot.reply.sport, snapshot.timeout_s) == (7, 30)


def test_gre_version_1_carries_ppp() -> None:
    table = FlowTable(KERNEL_6_1, DEFAULT_SYSCTLS)
    octets = gre(A4, B4, 7, protocol=0x0800)
    assert table.track(decode(octets), 0.0) == CT_INVALID
    assert table.reason is Reason.MALFORMED
    queued = Queued(octets, Hook.PREROUTING, "", "", 0, CHECKSUM_GOOD)
    found = diagnose(queued, decode(octets), None, Evidence.BPF, KERNEL_6_1, DEFAULT_SYSCTLS)
    assert found == Finding(Reason.MALFORMED, None, "GRE version 1 that does not carry PPP")
