# SPDX-License-Identifier: MIT
"""The live kernel's conntrack: takes packets, and returns its verdict on each.

A namespace with two TUN interfaces. A packet written to the first goes through PREROUTING, where
conntrack sees it and a rule writes its ctstate into the DSCP field, is routed and comes out of
the second: all of it before `write` returns, so no wait is needed. The kernel's own reason arrives
on NFLOG; the entry is read through BPF, or through ctnetlink on kernels without it.
"""

import fcntl
import os
import platform
import select
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple, SctpState
from nfq_guard.flows.open import open_lookup
from nfq_guard.lab.netns import Namespace
from tests.support.kernel_log import KernelLog, speaking
from tests.support.lookups import answered

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_MTU: Final = 65000
_PACKET_MAX: Final = 1 << 16
# CLOCK_MONOTONIC_COARSE, which Python does not name. It advances with the ticks by which conntrack
# counts timeouts: after a pause of an emulated machine both are behind until the next tick.
_COARSE: Final = 6
# DSCP of each ctstate: its index in CTSTATES plus one, so that 0 means that no rule matched.
_DSCP: Final = {state: place + 1 for place, state in enumerate(CTSTATES)}


@dataclass(frozen=True, slots=True)
class Seen:
    """The kernel's treatment of one packet.

    Attributes:
        ctstate: Index in `CTSTATES`; None if the packet did not come out.
        texts: The kernel's log lines about it.
    """

    ctstate: int | None
    texts: tuple[str, ...]


def ticks_s() -> float:
    """Now, by the clock of conntrack's timeouts."""
    return time.clock_gettime(_COARSE)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for one packet of several.

    Attributes:
        before_s: When it was put in, by the clock of conntrack's timeouts.
        after_s: When it had come out.
        ctstate: As in `Seen`.
    """

    before_s: float
    after_s: float
    ctstate: int | None


@dataclass(frozen=True, slots=True)
class Played:
    """The kernel's treatment of several packets.

    Attributes:
        answers: One for each packet.
        texts: The kernel's log lines, each with its packet.
        entries: The requested flows, after the last packet.
        read_s: When the entries had been read.
    """

    answers: list[Answer]
    texts: list[tuple[str, bytes]]
    entries: list[FlowSnapshot | None]
    read_s: float


class Conntrack(Protocol):
    """A kernel's conntrack, of this machine or of another."""

    @property
    def release(self) -> str:
        """The release of the kernel."""

    @property
    def evidence(self) -> Evidence:
        """The source of its entries."""

    def play(self, packets: Sequence[bytes], flows: Sequence[FlowTuple]) -> Played:
        """Put packets in, one after the other, and collect all that the kernel says of them."""


class LiveConntrack:
    """A new namespace with its own conntrack.

    Attributes:
        space: The namespace.
        release: The release of the kernel.
    """

    release: Final = platform.release()

    def __init__(self, sysctls: Sysctls, *, reads_log: bool = True) -> None:
        """Create it with `sysctls`.

        Applies be_liberal, loose, ignore_invalid_rst, max_retrans, the timeout of CLOSE, and those
        of SCTP and GRE.

        Args:
            sysctls: Of the namespace.
            reads_log: Whether this object reads the kernel's log; else the code under test may.
        """
        self._stack = ExitStack()
        self._log: KernelLog | None = None
        try:
            self._set_up(sysctls, reads_log=reads_log)
        except BaseException:
            self._stack.close()
            raise

    def _set_up(self, sysctls: Sysctls, *, reads_log: bool) -> None:
        space = self._stack.enter_context(Namespace("live"))
        self.space = space
        with space.entered():
            self._inward = self._tun("in0")
            self._outward = self._tun("out0")
            for key, value in (
                ("ipv4/ip_forward", 1),
                ("ipv6/conf/all/forwarding", 1),
                ("ipv4/conf/all/rp_filter", 0),
                ("ipv4/conf/in0/rp_filter", 0),
                ("ipv4/conf/out0/rp_filter", 0),
                ("netfilter/nf_conntrack_tcp_be_liberal", int(sysctls.be_liberal)),
                ("netfilter/nf_conntrack_tcp_loose", int(sysctls.loose)),
                ("netfilter/nf_conntrack_tcp_ignore_invalid_rst", int(sysctls.ignore_invalid_rst)),
                ("netfilter/nf_conntrack_tcp_max_retrans", sysctls.max_retrans),
                ("netfilter/nf_conntrack_tcp_timeout_close", sysctls.tcp_timeouts_s[8]),
                ("netfilter/nf_conntrack_gre_timeout", sysctls.gre_timeout_s),
                ("netfilter/nf_conntrack_gre_timeout_stream", sysctls.gre_stream_timeout_s),
                *(
                    (f"netfilter/nf_conntrack_sctp_timeout_{state.name.lower()}", timeout_s)
                    for state, timeout_s in zip(SctpState, sysctls.sctp_timeouts_s, strict=True)
                    if state not in {SctpState.NONE, SctpState.HEARTBEAT_ACKED}
                ),
            ):
                path = Path("/proc/sys/net", key)
                if value or path.exists():  # ignore_invalid_rst came with 5.14
                    path.write_text(f"{value}\n", encoding="ascii")
        for name in ("in0", "out0"):
            space.ip("link", "set", name, "mtu", str(_MTU), "up")
        space.ip("route", "add", "default", "dev", "out0")
        space.ip("-6", "route", "add", "default", "dev", "out0")
        rules = "".join(
            f"-A PREROUTING -i in0 -m conntrack --ctstate {state} -j DSCP --set-dscp {dscp}\n"
            for state, dscp in _DSCP.items()
        )
        # Packets of the kernel itself, such as router solicitations.
        drop_own = "-A OUTPUT -o out0 -j DROP\n-A OUTPUT -o in0 -j DROP\n"
        for restore in ("iptables-restore", "ip6tables-restore"):
            space.run(restore, stdin=f"*mangle\n{rules}{drop_own}COMMIT\n")
        self._stack.enter_context(space.entered())
        # Open the log first, which loads the module that `speaking` needs.
        if reads_log:
            self._log = self._stack.enter_context(KernelLog())
            self._stack.enter_context(speaking())
        self.flows, _ = open_lookup()
        self._stack.callback(self.flows.close)
        self.log_texts()
        self.drain()

    def _tun(self, name: str) -> int:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, handle)
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN_NO_PI))
        return handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        self._stack.close()

    def drain(self) -> None:
        """Read and discard all packets that came out."""
        while self._read() is not None:
            pass

    def _read(self) -> bytes | None:
        try:
            return os.read(self._outward, _PACKET_MAX)
        except BlockingIOError:
            return None

    def send(self, octets: bytes) -> int | None:
        """Put one packet in; the place of its ctstate in `CTSTATES`, None if it got lost."""
        os.write(self._inward, octets)
        return self.came_out()

    def came_out(self) -> int | None:
        """The place in `CTSTATES` of a packet that has come out; None if none has."""
        out = self._read()
        if out is None:
            return None
        dscp = out[1] >> 2 if out[0] >> 4 == 4 else ((out[0] << 8 | out[1]) >> 6) & 0x3F
        return dscp - 1 if dscp else None

    def send_all(self, octets: bytes) -> int | None:
        """As `send`, for a packet that may come out in fragments."""
        ctstate = self.send(octets)
        self.drain()
        return ctstate

    def put(self, octets: bytes) -> None:
        """Put one packet in without waiting."""
        os.write(self._inward, octets)

    def send_through_queue(self, octets: bytes, wait_s: float = 10) -> bytes:
        """Put one packet in and wait until it comes out; fails when it does not."""
        os.write(self._inward, octets)
        assert select.select([self._outward], [], [], wait_s)[0], octets.hex()
        out = self._read()
        assert out is not None
        return out

    def forget(self) -> None:
        """Empty the kernel's flow table."""
        self.space.run("conntrack", "-F")

    def log_texts(self) -> list[tuple[str, bytes]]:
        """The kernel's log lines since the last call, each with its packet."""
        return [] if self._log is None else self._log.read()

    @property
    def evidence(self) -> Evidence:
        """What `flows` reads entries by."""
        return self.flows.evidence

    def play(self, packets: Sequence[bytes], flows: Sequence[FlowTuple]) -> Played:
        """Put packets in, one after the other, and collect all that the kernel says of them."""
        answers = []
        for octets in packets:
            before_s = ticks_s()
            ctstate = self.send(octets)
            answers.append(Answer(before_s, ticks_s(), ctstate))
        texts = self.log_texts()
        entries = answered(self.flows.lookup(flows))
        return Played(answers, texts, entries, ticks_s())

    def judge(self, octets: bytes) -> Seen:
        """Put one packet in, and collect all of the kernel's results at once."""
        ctstate = self.send(octets)
        return Seen(ctstate, tuple(text for text, _ in self.log_texts()))

    def snapshot(self, flow: FlowTuple) -> FlowSnapshot | None:
        """The kernel's entry of a flow."""
        return answered(self.flows.lookup([flow]))[0]
