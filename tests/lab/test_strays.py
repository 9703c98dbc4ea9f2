# SPDX-License-Identifier: MIT
"""The state that the lab derives from a live flow, and the strays built from it."""

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from nfq_guard.conntrack.kernel_rules import KERNELS, KernelRules
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import FlowTable
from nfq_guard.errors import UnavailableError
from nfq_guard.flow import IPV4, IPV6, TcpState
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation, Outcome
from nfq_guard.lab.scenarios.rst_injection import RstInjection
from nfq_guard.lab.strays import BEYOND_BYTES, Kind, Side, Stray, build, follow
from nfq_guard.lab.wiretap import Segment, read_segment
from nfq_guard.seqno import Seq, add, distance
from nfq_guard.wire.ip import decode

CLIENT = ("192.0.2.2", 40_000)
SERVER = ("192.0.2.1", 80)
ENDS = {IPV4: (CLIENT, SERVER), IPV6: (("2001:db8::2", 40_000), ("2001:db8::1", 80))}

# Plain, across 2**32, across 2**31.
ORIGINS = [1_000, 2**32 - 500, 2**31 - 500]


def frame(source: tuple[str, int], flags: str, seq: int, ack: int, **more: object) -> bytes:
    """A segment as it is on the link."""
    payload = bytes(str(more.pop("payload", "")), "ascii")
    client, server = ENDS[IPV6 if ":" in source[0] else IPV4]
    target = server if source == client else client
    tcp = TCP(
        sport=source[1],
        dport=target[1],
        flags=flags,
        seq=seq % 2**32,
        ack=ack % 2**32,
        **more,
    )
    ip = IPv6 if ":" in source[0] else IP
    return bytes(ip(src=source[0], dst=target[0]) / tcp / payload)


def frames(origin: int, family: int = IPV4) -> list[bytes]:
    """One request of 10 bytes and one answer of 600; windows of 100 << 4 and 200 << 2."""
    scale4, scale2 = ([("WScale", shift), ("Timestamp", (shift, 9))] for shift in (4, 2))
    client, server = ENDS[family]
    return [
        frame(client, "S", origin, 0, window=5_000, options=scale4),
        frame(server, "SA", origin, origin + 1, window=6_000, options=scale2),
        frame(client, "A", origin + 1, origin + 1, window=100),
        frame(client, "PA", origin + 1, origin + 1, window=100, payload="r" * 10),
        frame(server, "PA", origin + 1, origin + 11, window=200, payload="a" * 600),
        frame(client, "A", origin + 11, origin + 601, window=100),
    ]


def exchange(origin: int, family: int = IPV4) -> list[Segment]:
    """The segments of `frames`, as captured."""
    found = [read_segment(one, time_ns=7, link="wire") for one in frames(origin, family)]
    return [one for one in found if one is not None]


def stray(kind: Kind, *, from_client: bool = False) -> Stray:
    sender = object.__new__(Namespace)  # never used: these tests send nothing
    return Stray(kind=kind, sender=sender, tap="wire", from_client=from_client)


def built(kind: Kind, client: Side, server: Side, *, from_client: bool = False) -> Segment:
    octets = build(stray(kind, from_client=from_client), client, server)
    segment = read_segment(octets, time_ns=0, link="")
    assert segment is not None
    return segment


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_the_state_of_both_sides(origin: int, family: int) -> None:
    client, server = follow(exchange(origin, family))
    assert (client.address, server.address) == ENDS[family]
    assert client.end == add(Seq(origin), 11)
    assert server.end == add(Seq(origin), 601)
    assert client.maxwin == 5_000  # the SYN's window, which is never scaled
    assert client.limit == add(Seq(origin), 601 + (100 << 4))
    assert server.limit == add(Seq(origin), 1 + 6_000)
    assert server.timestamps == (2, 9)


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_seq_over_is_more_than_a_receiver_window_past_the_bound(origin: int, family: int) -> None:
    """Conntrack merely ignores a segment up to one window past the bound (kernel.md 1.6 f)."""
    client, server = follow(exchange(origin, family))
    segment = built(Kind.SEQ_OVER, client, server)
    assert client.limit is not None
    assert distance(segment.seq, client.limit) == client.maxwin + BEYOND_BYTES
    assert segment.ack == client.end
    assert (segment.dst, segment.src) == ENDS[family]


@pytest.mark.parametrize("origin", ORIGINS)
def test_old_data_repeats_the_first_answer(origin: int) -> None:
    client, server = follow(exchange(origin))
    segment = built(Kind.OLD_DATA, client, server)
    assert (segment.seq, segment.payload) == (add(Seq(origin), 1), b"a" * 600)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_stale_rst_is_below_the_acknowledged_number(origin: int) -> None:
    client, server = follow(exchange(origin))
    segment = built(Kind.STALE_RST, client, server, from_client=True)
    assert segment.is_rst
    assert distance(segment.seq, client.end) == -10


def test_a_capture_without_a_connection_is_an_error() -> None:
    with pytest.raises(UnavailableError, match="no connection"):
        follow(exchange(1)[1:])


def test_repeating_a_missing_answer_is_an_error() -> None:
    with pytest.raises(UnavailableError, match="no answer"):
        build(stray(Kind.OLD_DATA), *follow(exchange(1)[:3]))


@pytest.mark.parametrize(
    "octets",
    [b"", b"\x60" + bytes(60), bytes(IP() / (b"x" * 30)), bytes(IPv6() / UDP() / (b"x" * 30))],
)
def test_packets_other_than_tcp_are_skipped(octets: bytes) -> None:
    assert read_segment(octets, time_ns=0, link="") is None


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_forged_segments_close_a_liberal_flow_of_every_kernel(
    kernel: KernelRules, family: int
) -> None:
    """What `rst-injection` expects of be_liberal, whatever a kernel checks of an RST."""
    forged = [
        build(stray(kind, from_client=True), *follow(exchange(1_000, family)))
        for kind in (Kind.FORGED_FIN, Kind.FORGED_RST)
    ]
    states = {}
    for liberal in (False, True):
        table = FlowTable(kernel, Sysctls(be_liberal=liberal))
        for number, octets in enumerate([*frames(1_000, family), *forged]):
            table.track(decode(octets), float(number))
        assert table.entry is not None
        states[liberal] = table.entry.state
    assert states == {False: TcpState.ESTABLISHED, True: TcpState.CLOSE}
    outcome = RstInjection().expected(kernel)[Mitigation.BE_LIBERAL].outcome
    assert outcome is Outcome.RESET
