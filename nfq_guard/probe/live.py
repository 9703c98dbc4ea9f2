# SPDX-License-Identifier: MIT
"""The running kernel's conntrack in a network namespace that exists only for the probe.

There are two TUN interfaces. A packet written to the first passes conntrack; a rule drops it if it
is INVALID; otherwise it is routed and comes out of the second. The namespace belongs to a thread,
and vanishes with it and the interfaces.
"""

import ctypes
import fcntl
import os
import select
import struct
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final, final

from nfq_guard import capabilities
from nfq_guard.errors import NfqGuardError, PrivilegeError, UnavailableError
from nfq_guard.firewall.xtables import System
from nfq_guard.flow import FlowSnapshot
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.probe.packets import IP_HEADER_LEN, fence, flow_of, packet_of
from nfq_guard.probe.questions import QUESTIONS, Question

_TUN: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_PACKET_MAX: Final = 2048
# Usually a packet comes out before `write` returns; this is the limit if another CPU handles it,
# seconds.
_FENCE_WAIT_S: Final = 2.0
_IN: Final = "probe0"
_OUT: Final = "probe1"

_SYSCTLS: Final = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    f"ipv4/conf/{_IN}/rp_filter": "0",
    "ipv4/conf/all/log_martians": "0",
}
# The first program that works is used. Both enable conntrack in this namespace.
_RULES: Final = (
    (
        ("nft", "-f", "-"),
        "table ip probe {\n"
        " chain prerouting {\n"
        "  type filter hook prerouting priority -150; policy accept;\n"
        "  ct state invalid drop\n"
        " }\n"
        "}\n",
    ),
    (
        ("iptables-restore",),
        "*mangle\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n",
    ),
)


def ask() -> list[str]:
    """The kernel's answers to `QUESTIONS`, in order.

    Raises:
        PrivilegeError: Not root. UnavailableError: A requirement is missing; the message names it.
    """
    held = capabilities.effective()
    if not held >> capabilities.SYS_ADMIN & held >> capabilities.NET_ADMIN & 1:
        raise PrivilegeError(
            "asking the kernel takes root: CAP_SYS_ADMIN for a network namespace and CAP_NET_ADMIN"
        )
    answers: list[str] = []
    failed: list[Exception] = []

    def inside() -> None:
        try:
            _enter_new_namespace()
            with _Conntrack() as conntrack:
                answers.extend(conntrack.answer(*asked) for asked in enumerate(QUESTIONS))
        except Exception as error:  # noqa: BLE001 - raised in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=inside, name="probe")
    thread.start()
    thread.join()
    for error in failed:
        if isinstance(error, OSError):
            raise UnavailableError(f"the kernel cannot be asked: {error}") from None
        raise error
    return answers


def _enter_new_namespace() -> None:
    """Move the calling thread into a new network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"a network namespace cannot be made: {os.strerror(code)}")


@final
class _Conntrack:
    """The conntrack of the calling thread's namespace, which must be fresh."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._fences = 0

    def __enter__(self) -> "_Conntrack":
        with ExitStack() as undo:
            undo.enter_context(self._stack)
            self._inward = self._tun(_IN)
            self._outward = self._tun(_OUT)
            for key, value in _SYSCTLS.items():
                Path("/proc/sys/net", key).write_text(f"{value}\n", encoding="ascii")
            system = System()
            for words in (
                ("ip", "link", "set", _IN, "up"),
                ("ip", "link", "set", _OUT, "up"),
                ("ip", "route", "add", "default", "dev", _OUT),
            ):
                _run(system, words, "")
            _load_rules(system)
            flows = CtnetlinkFlows((0,))
            self._stack.callback(flows.close)
            self._flows = flows
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answer(self, index: int, question: Question) -> str:
        """The kernel's answer to one question."""
        letters = "".join(
            "." if self._passes(packet_of(index, segment, question.first)) else "x"
            for segment in question.segments
        )
        if not question.timed:
            return letters
        found = self._flows.lookup([flow_of(index)])[0]
        if not isinstance(found, FlowSnapshot):
            return f"{letters} gone"
        # The kernel counts down in whole seconds; all expected timeouts end in 0.
        return f"{letters} {round(found.timeout_s, -1)}"

    def _passes(self, packet: bytes) -> bool:
        """Whether a packet comes out again, apart from its changed IP header (TTL)."""
        self._fences += 1
        last = fence(self._fences)
        os.write(self._inward, packet)
        os.write(self._inward, last)
        passes = False
        while select.select([self._outward], [], [], _FENCE_WAIT_S)[0]:
            body = os.read(self._outward, _PACKET_MAX)[IP_HEADER_LEN:]
            if body == last[IP_HEADER_LEN:]:
                return passes
            passes = passes or body == packet[IP_HEADER_LEN:]
        raise UnavailableError(
            "the kernel cannot be asked: a packet did not pass the namespace of the probe"
        )

    def _tun(self, name: str) -> int:
        try:
            handle = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(
                f"the kernel cannot be asked: {_TUN} is missing ({error.strerror}); load the "
                "module tun"
            ) from None
        self._stack.callback(os.close, handle)
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN_NO_PI))
        return handle


def _load_rules(system: System) -> None:
    failures: list[str] = []
    for words, text in _RULES:
        try:
            _run(system, words, text)
        except NfqGuardError as error:
            failures.append(str(error))
        else:
            return
    raise UnavailableError(f"no rule on ctstate can be set for the probe: {'; '.join(failures)}")


def _run(system: System, words: tuple[str, ...], text: str) -> None:
    if not system.find(words[0]):
        raise UnavailableError(f"the kernel cannot be asked: program {words[0]} is missing")
    done = system.run(list(words), text)
    if done.status != 0:
        complaint = done.stderr.strip().partition("\n")[0]
        raise UnavailableError(f"{' '.join(words)}: {complaint}")
