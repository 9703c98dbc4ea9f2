# SPDX-License-Identifier: MIT
"""Real INVALID packets under each fail mode."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
from netfilterqueue import NetfilterQueue, Packet

from nfq_guard.firewall import UNJUDGED_MARK, Backend, FailMode, Family, RulesSpec
from tests.firewall.conftest import ADDRESSES, BEYOND, Host, Wire, received

pytestmark = pytest.mark.kernel

SENT = 8


@contextmanager
def reader(host: Host, judge: Callable[[Packet], None]) -> Iterator[list[int]]:
    """Judge and count the packets of queue 0 of `host`."""
    judged: list[int] = []
    stop = threading.Event()

    def callback(packet: Packet) -> None:
        judge(packet)
        judged.append(packet.hook)

    with host.ns.entered():
        queue = NetfilterQueue()
        queue.bind(0, callback)

    def drain() -> None:
        while not stop.wait(0.02):
            queue.run(block=False)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield judged
    finally:
        stop.set()
        thread.join()
        queue.unbind()


def _accept(packet: Packet) -> None:
    packet.accept()


def _accept_unmarked(packet: Packet) -> None:
    packet.set_mark(packet.mark & ~UNJUDGED_MARK)
    packet.accept()


def _drop(packet: Packet) -> None:
    packet.drop()


@pytest.mark.parametrize(
    ("mode", "judge", "arrive", "queued"),
    [
        (FailMode.OPEN, None, SENT, False),
        (FailMode.OPEN, _accept, SENT, True),
        (FailMode.OPEN, _drop, 0, True),
        (FailMode.CLOSED, None, 0, False),
        (FailMode.CLOSED, _accept, SENT, True),
        (FailMode.KERNEL_DROP, None, 0, False),
        (FailMode.KERNEL_DROP, _accept, 0, True),
        (FailMode.KERNEL_DROP, _accept_unmarked, SENT, True),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_what_arrives_in_each_fail_mode(
    wire: Wire,
    backend: Backend,
    family: Family,
    mode: FailMode,
    judge: Callable[[Packet], None] | None,
    arrive: int,
    queued: bool,
) -> None:
    """With a daemon that accepts, one that drops, and none."""
    peer, guarded = wire.peer, wire.guarded
    with guarded.ns.entered():
        guarded.firewall(RulesSpec(fail_mode=mode), backend).install()
    far, near = ADDRESSES[family]
    with guarded.listen(family) as inside, peer.listen(family) as outside:
        if judge is None:
            peer.send_invalid(family, near, SENT)
            guarded.send_invalid(family, far, SENT)
            hooks: list[int] = []
            came = received(inside), received(outside)
        else:
            with reader(guarded, judge) as hooks:
                peer.send_invalid(family, near, SENT)
                guarded.send_invalid(family, far, SENT)
                came = received(inside), received(outside)
    sent = arrive
    if (backend, mode, judge) == (Backend.NFT, FailMode.KERNEL_DROP, _accept):
        sent = SENT  # what is sent there has no mark, and is dropped in the queue
    assert came == (arrive, sent)
    # Answers to what arrived (RST) are INVALID too, and queued besides.
    assert (hooks.count(0) >= SENT, hooks.count(3) >= SENT) == (queued, queued)


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [(FailMode.OPEN, 200, 200), (FailMode.CLOSED, 1, 60), (FailMode.KERNEL_DROP, 1, 60)],
)
def test_what_is_above_the_rate_goes_the_way_of_the_fail_mode(
    wire: Wire,
    backend: Backend,
    family: Family,
    mode: FailMode,
    low: int,
    high: int,
) -> None:
    peer, guarded = wire.peer, wire.guarded
    with guarded.ns.entered():
        guarded.firewall(RulesSpec(fail_mode=mode, max_rate_pps=50), backend).install()
    _, near = ADDRESSES[family]
    with guarded.listen(family) as inside, reader(guarded, _accept_unmarked):
        peer.send_invalid(family, near, 200)
        assert low <= received(inside) <= high
    assert guarded.packets(backend, family, "--hashlimit") >= 100


def test_loopback_is_judged_once(guarded: Host, backend: Backend) -> None:
    """A packet on lo passes OUTPUT and PREROUTING; only the first counts."""
    with guarded.ns.entered():
        guarded.firewall(backend=backend).install()
    with reader(guarded, _drop) as hooks:
        guarded.send_invalid(Family.IPV4, "127.0.0.1", SENT)
        with guarded.listen(Family.IPV4) as inside:
            assert received(inside) == 0
    assert hooks == [3] * SENT


def test_a_new_rate_is_taken_up(wire: Wire, backend: Backend) -> None:
    """The kernel keeps the parameters of a hashlimit table by name: a new rate needs a new name."""
    peer, guarded = wire.peer, wire.guarded
    with guarded.ns.entered():
        for rate in (5, 100_000):
            spec = RulesSpec(fail_mode=FailMode.CLOSED, max_rate_pps=rate)
            guarded.firewall(spec, backend).install()
    with guarded.listen(Family.IPV4) as inside, reader(guarded, _accept):
        peer.send_invalid(Family.IPV4, ADDRESSES[Family.IPV4][1], 100)
        assert received(inside) == 100


@pytest.mark.parametrize(
    ("judge", "arrive"),
    [(None, 0), (_accept, 0), (_accept_unmarked, SENT)],
    ids=["no-daemon", "marked", "unmarked"],
)
def test_forwarded_packets_must_lose_the_mark_in_kernel_drop(
    wire: Wire,
    beyond: Host,
    backend: Backend,
    family: Family,
    judge: Callable[[Packet], None] | None,
    arrive: int,
) -> None:
    """An accepted packet continues to filter FORWARD with the mark of its verdict."""
    with wire.guarded.ns.entered():
        wire.guarded.firewall(RulesSpec(fail_mode=FailMode.KERNEL_DROP), backend).install()
    daemon = reader(wire.guarded, judge) if judge else nullcontext()
    with beyond.listen(family) as raw, daemon:
        wire.peer.send_invalid(family, BEYOND[family], SENT)
        assert received(raw) == arrive
