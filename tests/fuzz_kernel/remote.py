# SPDX-License-Identifier: MIT
"""The conntrack of an emulated machine: sends packets there, and receives its kernel's results.

The machine only plays packets. They are drawn, and judged by our rules, outside of the emulation.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.flow import Evidence, FlowTuple
from tests.support.live import LiveConntrack, Played


class _Begin(msgspec.Struct, tag=True):
    """Make a new namespace with these sysctls; it replaces the last one."""

    sysctls: Sysctls


class _Play(msgspec.Struct, tag=True):
    packets: Sequence[bytes]
    flows: Sequence[FlowTuple]


class _End(msgspec.Struct, tag=True):
    """No more packets follow; the machine reports this record."""

    record: dict[str, Any]


_REQUEST: Final = msgspec.msgpack.Decoder(_Begin | _Play | _End)
_PLAYED: Final = msgspec.msgpack.Decoder(Played)
_encode: Final = msgspec.msgpack.encode


class RemoteConntrack:
    """One namespace in the machine.

    Attributes:
        release: The release of its kernel.
        evidence: The source of its entries.
    """

    def __init__(self, line: Connection, release: str, sysctls: Sysctls) -> None:
        """Have it made with `sysctls`."""
        self._line = line
        self.release = release
        line.send_bytes(_encode(_Begin(sysctls)))
        self.evidence = Evidence(msgspec.msgpack.decode(line.recv_bytes()))

    def play(self, packets: Sequence[bytes], flows: Sequence[FlowTuple]) -> Played:
        """Put packets in, one after the other, and collect all of the kernel's results."""
        self._line.send_bytes(_encode(_Play(packets, flows)))
        return _PLAYED.decode(self._line.recv_bytes())


class Machine:
    """A machine that runs `serve`.

    Attributes:
        release: The release of its kernel.
    """

    def __init__(self, line: Connection) -> None:
        """Wait until it is ready."""
        self._line = line
        self.release: str = msgspec.msgpack.decode(line.recv_bytes(), type=str)

    @contextmanager
    def conntrack(self, sysctls: Sysctls) -> Iterator[RemoteConntrack]:
        """A namespace in the machine; the next one replaces it."""
        yield RemoteConntrack(self._line, self.release, sysctls)

    def end(self, record: dict[str, Any]) -> None:
        """Give the machine the results."""
        self._line.send_bytes(_encode(_End(record)))


def serve(line: Connection) -> dict[str, Any]:
    """Play the packets received over `line` in namespaces of this machine; returns the results."""
    line.send_bytes(_encode(platform.release()))
    with ExitStack() as stack:
        live: LiveConntrack | None = None
        while True:
            request = _REQUEST.decode(line.recv_bytes())
            if isinstance(request, _End):
                return request.record
            if isinstance(request, _Begin):
                stack.close()
                live = stack.enter_context(LiveConntrack(request.sysctls))
                line.send_bytes(_encode(live.evidence))
            else:
                assert live is not None
                line.send_bytes(_encode(live.play(request.packets, request.flows)))
