# SPDX-License-Identifier: MIT
"""Texts of a log that loses messages, has repetitions or is flooded, matched with packets."""

import errno
import struct
from collections.abc import Iterable

import pytest

from nfq_guard import capabilities
from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.conntrack.log_text import Logged
from nfq_guard.errors import BusyError, PrivilegeError, UnavailableError
from nfq_guard.finding import Reason
from nfq_guard.flows.kernel_log import KernelLog, identity
from nfq_guard.netlink.messages import NLMSG_ERROR, attribute, attributes
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import CHECKSUM_GOOD, Queued
from tests.support.packets import A4, A6, B4, B6, icmp, ip, tcp, udp

_PACKET = 0x400
_OVER = "nf_ct_proto_6: SEQ is over upper bound 8 "
OVER = Logged(Reason.SEQ_OVER, seq(7))


def logged(octets: bytes, text: str = _OVER, number: int | None = 0) -> tuple[int, int, bytes]:
    """One message of the kernel."""
    parts = attribute(9, octets) + attribute(10, text.encode() + b"\0")
    if number is not None:
        parts += attribute(12, struct.pack(">I", number))
    return _PACKET, 0, bytes(4) + parts


def response(code: int) -> tuple[int, int, bytes]:
    return NLMSG_ERROR, 1, struct.pack("=i", -code)


Datagram = list[tuple[int, int, bytes]]


class Netlink:
    """A connection that responds to requests, and has messages waiting."""

    def __init__(self, *codes: int | None) -> None:
        self.codes = iter(codes)
        self.sent: list[dict[int, bytes]] = []
        self.waiting: list[Datagram | OSError] = []
        self.closed = False
        self.room = 0

    def fileno(self) -> int:
        return 99

    def enlarge(self, buffer_bytes: int) -> None:
        self.room = buffer_bytes

    def send(self, octets: bytes) -> None:
        self.sent.append(attributes(octets[20:]))
        code = next(self.codes, 0)
        if code is not None:
            # A message that was sent before is ahead of the response.
            self.waiting += [[(_PACKET, 0, bytes(4))], [response(code)]]

    def receive(self) -> Datagram | None:
        if not self.waiting:
            return None
        first = self.waiting.pop(0)
        if isinstance(first, OSError):
            raise first
        return first

    def close(self) -> None:
        self.closed = True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Read:
    """A log, and what it reads from."""

    def __init__(self, release: str = "6.12.1") -> None:
        self.netlink = Netlink()
        self.clock = Clock()
        self.on = True
        self.log = KernelLog(
            guess_rules(release), lambda: self.on, connection=self.netlink, clock=self.clock
        )

    def hears(self, *messages: tuple[int, int, bytes]) -> None:
        self.netlink.waiting += [[each] for each in messages]

    def texts(self, *packets: bytes) -> list[Logged | None]:
        return self.log.texts([queued(octets) for octets in packets])


def queued(octets: bytes) -> Queued:
    return Queued(octets, 0, "eth0", "", 0, CHECKSUM_GOOD)


ONE, OTHER = tcp(A4, B4, 1, 2, 0x10), tcp(A4, B4, 1, 2, 0x10, seq=9)


def test_the_group_is_bound_before_anything_else() -> None:
    with Read().log as log:
        netlink = log._connection
        assert isinstance(netlink, Netlink)
        assert log.fileno() == 99
        assert netlink.room >= 1 << 20
        bind, mode = netlink.sent
        assert bind == {1: b"\1"}
        # Packets are copied, each message is sent at once and has a number.
        assert {kind: mode[kind][-1] for kind in (4, 5, 6)} == {4: 0, 5: 1, 6: 1}
        assert mode[2][4] == 2
    assert netlink.closed


def test_a_text_finds_its_packet() -> None:
    read = Read()
    read.hears(logged(OTHER, number=0), logged(ONE, "nf_ct_proto_6: invalid rst ", number=1))
    assert read.texts(ONE, OTHER) == [Logged(Reason.RST_OUTSIDE), OVER]
    assert read.texts(ONE) == [None]
    assert read.log.lost == 0


def test_the_same_packet_again() -> None:
    """As many equal packets get a text as there are texts, and each gets the newest."""
    read = Read()
    read.hears(logged(ONE, number=0), logged(ONE, "nf_ct_proto_6: invalid new ", number=1))
    assert read.texts(ONE, ONE, ONE) == [Logged(Reason.NO_ENTRY), Logged(Reason.NO_ENTRY), None]


def test_texts_about_valid_packets_and_beside_a_reason() -> None:
    read = Read()
    read.hears(
        logged(ONE, number=0),
        logged(ONE, "nf_ct_proto_6: lower timeout to 75000 ", number=1),
        logged(OTHER, "nf_ct_proto_6: ignored ACK under lower bound 17 ", number=2),
        (_PACKET + 1, 0, bytes(8)),
        logged(b"", "TRACE: raw:PREROUTING:policy:1 ", number=3),
    )
    assert read.texts(OTHER, ONE) == [None, OVER]


def test_what_old_kernels_call_invalid() -> None:
    text = "nf_ct_proto_6: 151 bytes more than expected "
    for release, expected in (("5.15.0", Logged(Reason.SEQ_OVER, excess=151)), ("6.1.0", None)):
        read = Read(release)
        read.hears(logged(ONE, text))
        assert read.texts(ONE) == [expected]


def test_silence_proves_something_only_while_nothing_is_missing() -> None:
    read = Read()

    def silent() -> bool:
        read.texts(ONE)
        return read.log.silent() == {Reason.ICMP_UNRELATED}

    assert not silent()  # packets of before the start
    read.clock.now = 60.0
    assert silent()
    assert read.log.silent() is read.log.silent()
    read.on = False
    assert not silent()
    read.on = True
    read.hears(logged(ONE, number=5), logged(ONE, number=9))
    assert not silent()
    assert read.log.lost == 3
    read.clock.now = 120.0
    assert silent()
    read.netlink.waiting.append(OSError(errno.ENOBUFS, "lost"))
    read.hears(logged(ONE, number=12))
    assert not silent()
    assert read.log.lost == 5


def test_numbers_wrap_and_may_lack() -> None:
    read = Read()
    read.hears(*(logged(ONE, number=number) for number in (2**32 - 1, 0, None, 1)))
    assert read.texts(ONE) == [OVER]
    assert read.log.lost == 0


def test_a_flood_is_not_read_at_once() -> None:
    """A verdict does not wait for it; a missing text proves nothing until all of it is read."""
    read = Read()
    read.clock.now = 60.0
    read.hears(*(logged(OTHER, number=number) for number in range(1000)), logged(ONE, number=1000))
    assert read.texts(ONE) == [None]
    assert read.log.silent() == frozenset()
    assert len(read.netlink.waiting) > 500
    while read.netlink.waiting:
        read.log.read()
    assert read.texts(ONE) == [OVER]
    assert read.log.silent() != frozenset()


def test_texts_that_no_packet_claims_are_bounded() -> None:
    read = Read()
    packets = [tcp(A4, B4, 1, 2, 0x10, seq=number) for number in range(16_385)]
    read.hears(*(logged(octets, number=number) for number, octets in enumerate(packets)))
    while read.netlink.waiting:
        read.log.read()
    assert read.texts(packets[0], packets[1], packets[-1]) == [None, OVER, OVER]


def test_texts_with_numbers_are_bounded() -> None:
    read = Read()
    for bound in range(3000):
        read.hears(logged(ONE, f"nf_ct_proto_6: SEQ is over upper bound {bound + 1} ", bound))
        assert read.texts(ONE) == [Logged(Reason.SEQ_OVER, seq(bound))]
    assert len(read.log._meanings) <= 1024


def test_any_other_error_is_no_loss() -> None:
    read = Read()
    read.netlink.waiting.append(OSError(errno.EBADF, "gone"))
    with pytest.raises(OSError, match="gone"):
        read.texts(ONE)


@pytest.mark.parametrize(
    ("code", "held", "error", "words"),
    [
        (errno.EPERM, True, BusyError, "another program, such as ulogd, reads NFLOG group 0"),
        (errno.EBUSY, True, BusyError, "another program"),
        (errno.EPERM, False, PrivilegeError, "CAP_NET_ADMIN is missing"),
        (errno.EINVAL, True, UnavailableError, "module nfnetlink_log"),
        (None, True, UnavailableError, "does not respond"),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    held: bool,
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr(capabilities, "has", lambda _number: held)
    netlink = Netlink(code)
    with pytest.raises(error, match=words):
        KernelLog(guess_rules("6.1"), lambda: True, connection=netlink)
    assert netlink.closed


def _changed(octets: bytes, *at: int) -> bytes:
    return bytes(byte ^ 0xFF if place in at else byte for place, byte in enumerate(octets))


def _same(octets: bytes, places: Iterable[int]) -> bool:
    return identity(_changed(octets, *places)) == identity(octets)


@pytest.mark.parametrize("octets", [ONE, udp(A4, B4, 1, 2), icmp(A4, B4, 0, bytes(12))])
def test_what_rules_of_the_mangle_table_change(octets: bytes) -> None:
    """TOS, TTL and checksums, and nothing else of the headers."""
    checksum = {6: 36, 17: 26, 1: 22}[octets[9]]
    free = {1, 8, 10, 11, checksum, checksum + 1}
    if octets[9] == 6:
        free |= {38, 39}  # the urgent pointer
    for place in range(1, min(len(octets), 40)):
        assert _same(octets, [place]) == (place in free), place


@pytest.mark.parametrize(
    "octets", [tcp(A6, B6, 1, 2, 0x10), udp(A6, B6, 1, 2), icmp(A6, B6, 129, bytes(12))]
)
def test_what_rules_change_of_ipv6(octets: bytes) -> None:
    checksum = {6: 56, 17: 46, 58: 42}[octets[6]]
    free = {1, 2, 3, 7, checksum, checksum + 1}
    if octets[6] == 6:
        free |= {58, 59}
    for place in (1, 2, 3, 4, 5, *range(7, min(len(octets), 60))):
        assert _same(octets, [place]) == (place in free), place


def test_octets_that_are_no_packet() -> None:
    assert identity(b"") == b""
    for length in range(1, 60):
        identity(ip(A4, B4, 47, bytes(40))[:length])
        identity(ip(A6, B6, 47, bytes(40))[:length])
    assert identity(ip(A4, B4, 47, b"a")) != identity(ip(A4, B4, 47, b"b"))
