# SPDX-License-Identifier: MIT
"""Drops privileges as `nfq-guard run` does, tries forbidden actions, and prints what worked."""

import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nfq_guard.service import privileges
from nfq_guard.service.settings import Settings
from tests.systemd.forbidden import FORBIDDEN

# What the user id of root is enough for.
OF_ROOT = (
    "reading /etc/shadow",
    "signalling others",
    "root's user id",
)
_OF_CAPABILITIES = (
    "a raw socket",
    "a packet socket",
    "reading memory of others",
    "loading a BPF program",
    "pinning",
    "tracing",
    "a network namespace",
    "mounting",
    "a module",
    "the clock",
    "the host name",
)


def _bound(port: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def _connected(listener: socket.socket) -> None:
    with socket.socket() as client:
        client.connect(listener.getsockname())


def _attempts(own: Path, other: Path, listener: socket.socket) -> dict[str, Callable[[], object]]:
    there = other / "there"
    return {
        "a file elsewhere": lambda: (other / "new").write_bytes(b""),
        "a directory elsewhere": (other / "folder").mkdir,
        "a link elsewhere": lambda: (other / "link").symlink_to("x"),
        "a pipe elsewhere": lambda: os.mkfifo(other / "pipe"),
        "a socket elsewhere": lambda: socket.socket(socket.AF_UNIX).bind(str(other / "socket")),
        "writing elsewhere": lambda: there.open("ab").close(),
        "truncating elsewhere": lambda: os.truncate(there, 0),
        "removing elsewhere": there.unlink,
        "renaming elsewhere": lambda: there.rename(other / "then"),
        "moving in": lambda: there.rename(own / "there"),
        "moving out": lambda: (own / "kept").rename(other / "kept"),
        "linking in": lambda: (own / "hard").hardlink_to(there),
        "/etc": lambda: Path("/etc/nfq-guard-forbidden").write_bytes(b""),
        "a sysctl": lambda: Path("/proc/sys/net/ipv4/ip_forward").open("wb").close(),
        "a program's write": lambda: _run("touch", str(other / "by-a-program")),
        "a TCP connection": lambda: _connected(listener),
        "a TCP port": lambda: _bound(0),
        "its log": lambda: (own / "log").write_bytes(b"x"),
        "a file beside its log": lambda: (own / "log.1").write_bytes(b""),
        "a program's write there": lambda: _run("touch", str(own / "by-a-program")),
        "reading": there.read_bytes,
    }


def _run(*words: str) -> None:
    status = subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode
    if status:
        raise OSError(status, words[0])


def _without_landlock() -> None:
    """Make the kernel respond as one without its first system call."""
    code = b"".join(
        struct.pack("=HBBI", *one)
        for one in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 0, 1, 444),  # landlock_create_ruleset, or skip
            (0x06, 0, 0, 0x00050000 | errno.ENOSYS),  # fail with ENOSYS
            (0x06, 0, 0, 0x7FFF0000),  # allow
        )
    )
    program = ctypes.create_string_buffer(code)
    filtered = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(program)))
    assert ctypes.CDLL(None).prctl(22, 2, filtered, 0, 0) == 0  # PR_SET_SECCOMP, a filter


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    folder, elsewhere = map(Path, sys.argv[1:3])
    options = sys.argv[3:]
    user = "nobody" if "--user" in options else ""
    if "--without-landlock" in options:
        _without_landlock()
    with socket.create_server(("127.0.0.1", 0)) as heard:
        made = _attempts(folder, elsewhere, heard)
        made |= {name: FORBIDDEN[name] for name in (*_OF_CAPABILITIES, *OF_ROOT)}
        settings = Settings(log=str(folder / "log"), control_socket="", rules="none", user=user)
        notes = privileges.give_up(settings, ())
        worked = [name for name, attempt in made.items() if _works(attempt)]
    sys.stdout.write(json.dumps({"worked": worked, "notes": notes}))
