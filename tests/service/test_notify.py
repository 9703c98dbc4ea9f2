# SPDX-License-Identifier: MIT
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.service.notify import Notifier


def heard_by(name: str, send: Callable[[Notifier], None]) -> list[bytes]:
    """The datagrams that a service manager at `name` receives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if name.startswith("@") else name)
        send(Notifier(name, "2000000"))
        systemd.settimeout(0)
        found: list[bytes] = []
        while True:
            try:
                found.append(systemd.recv(1000))
            except BlockingIOError:
                return found


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_both_kinds_of_address(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@nfqg-test-{os.getpid()}"
    assert heard_by(name, lambda notifier: notifier.ready([3, 4])) == [
        b"READY=1\nSTATUS=queue 3, 4: serving"
    ]


def test_nothing_after_stopping(tmp_path: Path) -> None:
    """A daemon that is ending neither feeds its watchdog nor reports itself ready again."""

    def send(notifier: Notifier) -> None:
        assert notifier.watchdog_s == 2
        notifier.alive()
        notifier.reloading()
        notifier.stopping()
        notifier.reloaded()
        notifier.alive()
        notifier.stopping()

    alive, reloading, stopping = heard_by(str(tmp_path / "notify"), send)
    assert alive == b"WATCHDOG=1"
    assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert stopping == b"STOPPING=1"


def test_without_systemd() -> None:
    notifier = Notifier("", "2000000")
    notifier.alive()
    assert notifier.watchdog_s == 0


def test_socket_that_is_gone(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody"), "x").alive()
