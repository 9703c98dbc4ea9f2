# SPDX-License-Identifier: MIT
"""The kernel's own texts on why it called a packet INVALID, through NFLOG (kernel.md 1.12).

The kernel logs if `nf_conntrack_log_invalid` is set and nfnetlink_log is the logger, both settings
of the network namespace; `speaking` sets them temporarily. The group has only one reader.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self, final

from nfq_guard import capabilities
from nfq_guard.conntrack.kernel_rules import KERNEL_6_1, KERNEL_6_12, guess_rules
from nfq_guard.conntrack.log_text import parse_log
from nfq_guard.errors import BusyError, PrivilegeError, UnavailableError
from nfq_guard.finding import Reason
from nfq_guard.netlink.messages import (
    FAMILY_HEADER,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_in,
    message,
    messages,
)

# The only group to which conntrack logs.
_GROUP: Final = 0
_SUBSYSTEM: Final = 4 << 8  # NFNL_SUBSYS_ULOG
_PACKET: Final = _SUBSYSTEM | 0
_CONFIG: Final = _SUBSYSTEM | 1
# NFULA_CFG_* and its commands, NFULNL_COPY_PACKET, NFULA_*.
_CFG_CMD: Final = 1
_CFG_MODE: Final = 2
_CFG_TIMEOUT: Final = 4
_CFG_QTHRESH: Final = 5
_CMD_BIND: Final = b"\1"
_COPY_PACKET: Final = 2
_PAYLOAD: Final = 9
_PREFIX: Final = 10
_COPY_RANGE: Final = 0xFFFF

_DATAGRAM_MAX: Final = 1 << 17
_BUFFER_SIZE: Final = 1 << 21
_NF_LOG: Final = Path("/proc/sys/net/netfilter")
_ALL_PROTOCOLS: Final = 255

# Texts about packets that conntrack accepts without further checks; on 6.x also the two "under".
_IGNORED: Final = ("ignored", "more than expected")


def prints_bounds(release: str) -> bool:
    """Whether the text of a bound has the first number that fails."""
    return guess_rules(release).rules in {KERNEL_6_1, KERNEL_6_12}


@final
class KernelLog:
    """Reads NFLOG group 0 of the network namespace in which it was created."""

    def __init__(self) -> None:
        """Bind the group.

        Raises:
            PrivilegeError: CAP_NET_ADMIN is missing.
            BusyError: Another program has the group, such as ulogd.
            UnavailableError: The kernel has no nfnetlink_log.
        """
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_SIZE)
            self._configure(attribute(_CFG_CMD, _CMD_BIND))
            self._configure(
                attribute(_CFG_MODE, struct.pack(">IBx", _COPY_RANGE, _COPY_PACKET))
                # Deliver each line immediately: the text precedes the queued packet.
                + attribute(_CFG_QTHRESH, struct.pack(">I", 1))
                + attribute(_CFG_TIMEOUT, struct.pack(">I", 0))
            )
        except BaseException:
            self._socket.close()
            raise

    def _configure(self, body: bytes) -> None:
        self._socket.send(message(_CONFIG, NLM_F_ACK, 1, socket.AF_UNSPEC, _GROUP, body))
        code = errno.ENODATA
        try:
            # The kernel acknowledges before `send` returns; packets may precede the
            # acknowledgement.
            while code == errno.ENODATA:
                datagram = self._socket.recv(_DATAGRAM_MAX, socket.MSG_DONTWAIT)
                for kind, _, answer in messages(datagram):
                    if kind == NLMSG_ERROR:
                        code = error_in(answer)
        except BlockingIOError:
            raise UnavailableError("NFLOG group 0: no answer from the kernel") from None
        if code == errno.EPERM and not capabilities.has(capabilities.NET_ADMIN):
            raise PrivilegeError("CAP_NET_ADMIN is missing: NFLOG group 0 cannot be read")
        if code in {errno.EPERM, errno.EBUSY}:
            raise BusyError("NFLOG group 0 belongs to another process, such as ulogd")
        if code:
            raise UnavailableError(
                f"kernel option CONFIG_NETFILTER_NETLINK_LOG is missing (error {code})"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    def read(self) -> list[tuple[str, bytes]]:
        """The lines since the last call: the text, and the packet with its IP header first.

        Does not wait. Lines that were lost because they were not read in time are not reported.
        """
        found: list[tuple[str, bytes]] = []
        while True:
            try:
                datagram = self._socket.recv(_DATAGRAM_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            for kind, _, body in messages(datagram):
                if kind == _PACKET:
                    parts = attributes(body[FAMILY_HEADER.size :])
                    text = parts.get(_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace")
                    found.append((text.strip(), parts.get(_PAYLOAD, b"")))

    def close(self) -> None:
        """Release the group."""
        self._socket.close()


def is_ignored(text: str) -> bool:
    """Whether a 6.x kernel logged a packet that it did not call INVALID."""
    return any(words in text for words in _IGNORED) or "is under" in text


def reason_of(text: str) -> Reason | None:
    """The reason in a log text; None if it has none, or is not about an INVALID packet."""
    logged = parse_log(f"{text} ", old_segments_pass=True)
    return None if logged is None else logged.reason


@contextmanager
def speaking(protocol: int = _ALL_PROTOCOLS) -> Iterator[None]:
    """Turn the kernel's log to NFLOG on in the current network namespace, and off afterwards.

    Only for namespaces of the lab and of tests: the setting slows a host under a flood, and
    replaces its logger.

    Args:
        protocol: IP protocol number; 255 is every one.
    """
    with ExitStack() as stack:
        for name, value in (
            ("nf_log/2", "nfnetlink_log"),
            ("nf_log/10", "nfnetlink_log"),
            ("nf_conntrack_log_invalid", str(protocol)),
        ):
            stack.enter_context(_set(_NF_LOG / name, value))
        yield


@contextmanager
def _set(path: Path, value: str) -> Iterator[None]:
    before = path.read_text(encoding="ascii").strip()
    path.write_text(value, encoding="ascii")
    try:
        yield
    finally:
        path.write_text(before, encoding="ascii")
