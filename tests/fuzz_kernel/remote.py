# SPDX-License-Identifier: MIT
"""The conntrack of an emulated machine: packets go there, what its kernel says comes back.

The machine only plays. Packets are drawn, and judged by our rules, where that is not emulated.
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
    """A namespace of its own with these sysctls, in place of the one before."""

    sysctls: Sysctls


class _Play(msgspec.Struct, tag=True):
    packets: Sequence[bytes]
    flows: Sequence[FlowTuple]


class _End(msgspec.Struct, tag=True):
    """No more packets; the machine is to report this."""

    record: dict[str, Any]


_REQUEST: Final = msgspec.msgpack.Decoder(_Begin | _Play | _End)
_PLAYED: Final = msgspec.msgpack.Decoder(Played)
_encode: Final = msgspec.msgpack.encode


class RemoteConntrack:
    """One namespace in the machine.

    Attributes:
        release: The release of its kernel.
        evidence: What entries are read by there.
    """

    def __init__(self, line: Connection, release: str, sysctls: Sysctls) -> None:
        """Have it made, set as `sysctls` say."""
        self._line = line
        self.release = release
        line.send_bytes(_encode(_Begin(sysctls)))
        self.evidence = Evidence(msgspec.msgpack.decode(line.recv_bytes()))

    def play(self, packets: Sequence[bytes], flows: Sequence[FlowTuple]) -> Played:
        """Put packets in, one after the other, and collect all that the kernel says of them."""
        self._line.send_bytes(_encode(_Play(packets, flows)))
        return _PLAYED.decode(self._line.recv_bytes())


class Machine:
    """A machine that serves.

    Attributes:
        release: The release of its kernel.
    """

    def __init__(self, line: Connection) -> None:
        """Wait until it is ready."""
        self._line = line
        self.release: str = msgspec.msgpack.decode(line.recv_bytes(), type=str)

    @contextmanager
    def conntrack(self, sysctls: Sysctls) -> Iterator[RemoteConntrack]:
        """A namespace there, until the next one."""
        yield RemoteConntrack(self._line, self.release, sysctls)

    def end(self, record: dict[str, Any]) -> None:
        """Give the machine the results."""
        self._line.send_bytes(_encode(_End(record)))


def serve(line: Connection) -> dict[str, Any]:
    """Play what comes over `line` into namespaces of this machine; the results at the end."""
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
