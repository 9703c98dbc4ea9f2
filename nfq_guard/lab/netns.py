# SPDX-License-Identifier: MIT
"""Network namespaces: made, linked, entered and removed in one place.

The name of each holds the id of the process that made it, so that what a crash left behind can
be told from what somebody is using (`stale`).
"""

import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Self

from nfq_guard.errors import NfqGuardError, PrivilegeError, UnavailableError

PREFIX: Final = "nfqg"
_RUN: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000

_serial = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True, process_group=0)
    except FileNotFoundError:
        raise UnavailableError("program ip (Debian package iproute2) is missing") from None
    except subprocess.CalledProcessError as error:
        complaint = error.stderr.strip()
        if os.geteuid() != 0:
            raise PrivilegeError(f"namespaces need root: {complaint}") from None
        raise UnavailableError(f"ip {' '.join(words)}: {complaint}") from None


class Namespace:
    """One network namespace with its loopback up; removed by `close` or at the end of `with`.

    Attributes:
        name: As `ip netns` shows it.
    """

    def __init__(self, label: str) -> None:
        """Make it; `label` is a short word for its name.

        Raises:
            PrivilegeError: Not root.
            UnavailableError: The kernel or the machine has no namespaces to give.
        """
        self.name = f"{PREFIX}-{os.getpid()}-{next(_serial)}-{label}"
        _ip("netns", "add", self.name)
        try:
            self.ip("link", "set", "lo", "up")
        except NfqGuardError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the name; the kernel removes the rest once its last process is gone."""
        if (_RUN / self.name).exists():
            _ip("netns", "del", self.name)

    def ip(self, *words: str) -> None:
        """Run `ip -n NAME WORDS`."""
        _ip("-n", self.name, *words)

    def argv(self, words: Sequence[str]) -> list[str]:
        """The command that runs `words` inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def run(
        self,
        *words: str,
        check: bool = True,
        stdin: str | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and wait for it; its output is text."""
        return subprocess.run(
            self.argv(words),
            check=check,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=timeout_s,
            process_group=0,
        )

    def popen(
        self,
        *words: str,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command inside, in a process group of its own: Ctrl-C is ours to pass on."""
        return subprocess.Popen(
            self.argv(words),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            text=True,
            process_group=0,
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread inside; sockets made meanwhile stay there."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(_RUN / self.name)
            try:
                yield
            finally:
                _check(_libc.setns(home, _CLONE_NEWNET))
        finally:
            os.close(home)

    def sysctl(self, key: str, value: object) -> None:
        """Set `net.KEY`, for example `ipv4.ip_forward`, inside."""
        with self.entered():
            Path("/proc/sys/net", key.replace(".", "/")).write_text(f"{value}\n", encoding="ascii")


def _setns(path: Path) -> None:
    target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(target, _CLONE_NEWNET))
    finally:
        os.close(target)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def veth(
    left: Namespace, left_name: str, right: Namespace, right_name: str, *addresses: tuple[str, str]
) -> None:
    """Join two namespaces by a pair of interfaces, up, with addresses such as `10.0.0.1/24`.

    Args:
        left: The one.
        left_name: Its interface.
        right: The other.
        right_name: Its interface.
        addresses: Pairs of an address for `left` and one for `right`; IPv6 without waiting for
            duplicate address detection.
    """
    left.ip("link", "add", left_name, "type", "veth", "peer", right_name, "netns", right.name)
    for here, there in addresses:
        extra = ("nodad",) if ":" in here else ()
        left.ip("addr", "add", here, "dev", left_name, *extra)
        right.ip("addr", "add", there, "dev", right_name, *extra)
    left.ip("link", "set", left_name, "up")
    right.ip("link", "set", right_name, "up")


def stale() -> list[str]:
    """Names of namespaces of ours whose maker is no longer alive."""
    found: list[str] = []
    if not _RUN.exists():
        return found
    for path in sorted(_RUN.iterdir()):
        parts = path.name.split("-")
        ours = parts[0] == PREFIX and len(parts) >= 4 and parts[1].isdigit()
        if ours and not Path("/proc", parts[1]).exists():
            found.append(path.name)
    return found


def remove(name: str) -> None:
    """Remove a namespace that `stale` named, after ending the processes inside it.

    Somebody else may be at it at the same time.
    """
    pids = subprocess.run(
        ["ip", "netns", "pids", name], check=False, capture_output=True, text=True
    ).stdout.split()
    for pid in pids:
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            continue
    try:
        _ip("netns", "del", name)
    except UnavailableError:
        if (_RUN / name).exists():
            raise
