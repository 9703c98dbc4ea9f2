# SPDX-License-Identifier: MIT
import os
import socket
from pathlib import Path

import pytest

from nfq_guard.service.notify import Notifier


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_tells(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@nfqg-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if name.startswith("@") else name)
        notifier = Notifier(name, "2000000")
        notifier.tell("READY=1", "STATUS=fine")
        assert systemd.recv(100) == b"READY=1\nSTATUS=fine"
        assert notifier.watchdog_s == 2


def test_without_systemd() -> None:
    notifier = Notifier("", "2000000")
    notifier.tell("READY=1")
    assert notifier.watchdog_s == 0


def test_systemd_gone(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody"), "x").tell("READY=1")
