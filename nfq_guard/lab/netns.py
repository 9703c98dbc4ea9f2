# SPDX-License-Identifier: MIT
"""Creates, links, enters and removes network namespaces.

A namespace's name contains the pid of its creator, which distinguishes the leftovers of a crash
from namespaces in use (`stale`).
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


def _ip(*words: str, lines: str | None = None) -> None:
    try:
        subprocess.run(
            ["ip", *words], check=True, capture_output=True, text=True, input=lines, process_group=0
        )
    except FileNotFoundError:
        raise UnavailableError("program ip (Debian package iproute2) is missing") from None
    except subprocess.CalledProcessError as error:
        message = error.stderr.strip()
        if os.geteuid() != 0:
            raise PrivilegeError(f"namespaces need root: {message}") from None
        raise UnavailableError(f"ip {' '.join(words)}: {message}") from None


class Namespace:
    """One network namespace with its loopback up; removed by `close` or at the end of `with`.

    Attributes:
        name: Its name in `ip netns`.
    """

    def __init__(self, label: str) -> None:
        """Create the namespace; `label` is the last part of its name.

        Raises:
            PrivilegeError: Not root.
            UnavailableError: The program `ip` is missing or failed.
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
        """Remove the name; the kernel frees the namespace once its last process has exited."""
        if (_RUN / self.name).exists():
            _ip("netns", "del", self.name)

    def ip(self, *words: str) -> None:
        """Run `ip -n NAME WORDS...`."""
        _ip("-n", self.name, *words)

    def ip_batch(self, *lines: str) -> None:
        """Run several commands of `ip -n NAME`, in one process, up to the first that fails."""
        _ip("-n", self.name, "-batch", "-", lines="".join(f"{line}\n" for line in lines))

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
        """Start a command inside, in its own process group, which Ctrl-C does not reach."""
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
        """Move the calling thread inside; sockets opened meanwhile stay in the namespace."""
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
    """Connect two namespaces by a pair of interfaces and set them up.

    Args:
        left: One namespace.
        left_name: Its interface.
        right: The other namespace.
        right_name: Its interface.
        addresses: Pairs of an address for `left` and one for `right`, such as `10.0.0.1/24`. IPv6
            addresses skip duplicate address detection.
    """
    left.ip_batch(
        f"link add {left_name} type veth peer {right_name} netns {right.name}",
        *_set_up(left_name, [one for one, _ in addresses]),
    )
    right.ip_batch(*_set_up(right_name, [one for _, one in addresses]))


def _set_up(interface: str, addresses: Sequence[str]) -> list[str]:
    """The commands of `ip` that give an interface its addresses and set it up."""
    lines = [f"addr add {one} dev {interface}{' nodad' * (':' in one)}" for one in addresses]
    return [*lines, f"link set {interface} up"]


def stale() -> list[str]:
    """Names of the lab's namespaces whose creator has exited."""
    names: list[str] = []
    if not _RUN.exists():
        return names
    for path in sorted(_RUN.iterdir()):
        parts = path.name.split("-")
        ours = parts[0] == PREFIX and len(parts) >= 4 and parts[1].isdigit()
        if ours and not Path("/proc", parts[1]).exists():
            names.append(path.name)
    return names


def remove(name: str) -> None:
    """Kill the processes in a namespace from `stale`, then remove it.

    Another process may remove it at the same time.
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
