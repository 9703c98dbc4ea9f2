# SPDX-License-Identifier: MIT
"""Flows that the kernel's own TCP made, picked up in their middle: none is a candidate."""

import asyncio
import contextlib
import random
import socket
import struct
import time

import pytest

from nfq_guard.capture.frame import Frame
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.pace import limit
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.wire.packet import SYN
from tests.support.healthy import renumbered

# In one process, because they share the flows.
pytestmark = [pytest.mark.kernel, pytest.mark.compiled, pytest.mark.xdist_group("midstream")]

FLOWS = 1000
AT_ONCE = 100
# Below those that the kernel chooses, so that each flow has another one.
FIRST_PORT = 20_000
ETHERNET = 1
_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ABORTS = struct.pack("ii", 1, 0)


class Tap:
    """Everything that arrives on the loopback of a namespace, before a rule may drop it."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 27)
        self._socket.bind(("lo", 0x0003))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Take what has arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                octets, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
                if kind != _OUTGOING:
                    number = len(self.frames) + 1
                    frame = Frame(number, time.time_ns(), ETHERNET, len(octets), octets, 0)
                    self.frames.append(frame)

    def close(self) -> int:
        """Stop, and return how many frames it missed."""
        self.drain()
        counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._socket.close()
        return int(struct.unpack("II", counts)[1])


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests of the form `length, length of the answer` until the client ends."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            length, answer = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(length)
            writer.write(bytes(answer))
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _ask(rng: random.Random, own: int, port: int) -> None:
    """One flow from port `own`: a few requests, with any buffers, and an end by FIN or RST."""
    near = socket.socket()
    near.setblocking(False)
    near.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, rng.choice((2_304, 8_192, 65_536, 1 << 20))
    )
    near.bind(("127.0.0.1", own))
    await asyncio.get_running_loop().sock_connect(near, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=near)
    for _ in range(rng.randrange(2, 5)):
        length, answer = rng.choice((10, 900, 5_000)), rng.choice((10, 4_000, 30_000))
        writer.write(struct.pack("!II", length, answer) + bytes(length))
        await writer.drain()
        await reader.readexactly(answer)
    if rng.random() < 0.2:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTS)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _talk(seed: int, tap: Tap) -> None:
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    asyncio.get_running_loop().add_reader(tap, tap.drain)
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    free = asyncio.Semaphore(AT_ONCE)

    async def limited(number: int) -> None:
        async with free:
            own = FIRST_PORT + number
            await _ask(random.Random(rng.random() + number), own, port)  # noqa: S311 - as above

    await asyncio.gather(*(limited(number) for number in range(FLOWS)))
    server.close()
    serving = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*serving), limit(20))
    asyncio.get_running_loop().remove_reader(tap)


@pytest.fixture(scope="module")
def flows() -> list[list[Frame]]:
    """The frames of each flow. One packet in a hundred is lost behind the place of the capture.

    No RST is, because a server without it would end its connection after conntrack has.
    """
    with Namespace("talk") as ns:
        ns.ip("link", "set", "lo", "mtu", "1500", "gso_max_segs", "1")
        words = (
            "-p",
            "tcp",
            "!",
            "--tcp-flags",
            "RST",
            "RST",
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            "0.01",
            "-j",
            "DROP",
        )
        ns.run("iptables", "-w", "-A", "INPUT", *words)
        with ns.entered():
            tap = Tap()
            try:
                asyncio.run(_talk(1, tap))
            finally:
                missed = tap.close()
    assert missed == 0
    found: dict[frozenset[bytes], list[Frame]] = {}
    for frame in tap.frames:
        if frame.octets[12:14] == b"\x08\0" and frame.octets[23] == socket.IPPROTO_TCP:
            found.setdefault(frozenset((frame.octets[34:36], frame.octets[36:38])), []).append(
                frame
            )
    assert len(found) == FLOWS
    return list(found.values())


def replayed(frames: list[Frame]) -> tuple[Replayer, list[Outcome]]:
    replayer = Replayer(ReplaySettings())
    frames.sort(key=lambda frame: frame.number)
    return replayer, [*replayer.replay(renumbered(frames)), *replayer.finish()]


def test_whole_flows_have_no_invalid_packet(flows: list[list[Frame]]) -> None:
    """Lost packets were sent again, and the capture has them all."""
    replayer, found = replayed([frame for flow in flows for frame in flow])
    assert found == []
    assert replayer.table.created == FLOWS
    assert replayer.copies.copies == 0


def middle(flow: list[Frame], rng: random.Random) -> list[Frame]:
    """A flow from somewhere behind its last SYN."""
    opened = max(place for place, frame in enumerate(flow) if frame.octets[47] & SYN)
    return flow[rng.randrange(opened + 1, max(opened + 2, len(flow) * 3 // 4)) :]


def test_no_candidate_in_a_thousand_flows_from_their_middle(flows: list[list[Frame]]) -> None:
    rng = random.Random(1)  # noqa: S311 - reproducible, no secret
    replayer, found = replayed([frame for flow in flows for frame in middle(flow, rng)])
    assert len(replayer.streams.began_before) >= FLOWS
    assert outside(replayer.streams.began_before) == []
    assert [one for one in found if one.doubted is None] == []
