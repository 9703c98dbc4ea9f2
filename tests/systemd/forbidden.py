# SPDX-License-Identifier: MIT
"""Run in the service's sandbox: attempts what must fail there, and prints what worked, as JSON."""

import ctypes
import json
import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_BPF, _SYS_INIT_MODULE = {"x86_64": (321, 175), "aarch64": (280, 105)}[os.uname().machine]
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SCHED_CLS = 3
_PTRACE_TRACEME, _PTRACE_ATTACH = 0, 16
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def _call(number: int) -> None:
    if number < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _load_bpf() -> None:
    # The shortest program: it returns 0.
    program = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    text = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIQQIIQII",
            *(_BPF_PROG_TYPE_SCHED_CLS, 2, ctypes.addressof(program), ctypes.addressof(text)),
            *(0, 0, 0, 0, 0),
        ),
        128,
    )
    _call(_LIBC.syscall(_SYS_BPF, _BPF_PROG_LOAD, attributes, 48))


def _write(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(b"")


def _set_uid_bit() -> None:
    path = Path(os.environ["STATE_DIRECTORY"], "forbidden")
    path.write_bytes(b"")
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


FORBIDDEN: dict[str, Callable[[], object]] = {
    "a TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    "an IPv6 socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6).close(),
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "reading /etc/shadow": lambda: Path("/etc/shadow").read_bytes(),
    "reading a home": lambda: list(Path("/root").iterdir()),
    "reading memory of others": lambda: Path("/proc/1/mem").read_bytes(),
    "loading a BPF program": _load_bpf,
    "writing to /etc": _write("/etc/forbidden"),
    "writing its configuration": _write("/etc/nfq-guard/nfq-guard.toml"),
    "writing to /usr": _write("/usr/local/lib/nfq-guard/forbidden"),
    "writing to /run": _write("/run/forbidden"),
    "writing to /var/lib": _write("/var/lib/forbidden"),
    "writing to /var/log": _write("/var/log/forbidden"),
    "writing a sysctl": _write("/proc/sys/net/ipv4/ip_forward"),
    "pinning": _write("/sys/fs/bpf/forbidden"),
    "being traced": lambda: _call(_LIBC.ptrace(_PTRACE_TRACEME, 0, 0, 0)),
    "tracing": lambda: _call(_LIBC.ptrace(_PTRACE_ATTACH, os.getppid(), 0, 0)),
    "signalling others": lambda: os.kill(1, 0),
    "a user namespace": lambda: _call(_LIBC.unshare(_CLONE_NEWUSER)),
    "a network namespace": lambda: _call(_LIBC.unshare(_CLONE_NEWNET)),
    "mounting": lambda: _call(_LIBC.mount(b"none", b"/var/tmp", b"tmpfs", 0, None)),
    "a module": lambda: _call(_LIBC.syscall(_SYS_INIT_MODULE, None, 0, b"")),
    "root's user id": lambda: os.setuid(0),
    "the set-user-id bit": _set_uid_bit,
    "code in writable memory": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ).close(),
    "the clock": lambda: _call(_LIBC.settimeofday(struct.pack("=qq", 0, 0), None)),
    "the host name": lambda: socket.sethostname("forbidden"),
}
# These work, which shows that the attempts above fail for lack of permission alone.
ALLOWED: dict[str, Callable[[], object]] = {
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close(),
    "a unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "its state": _write(os.environ.get("STATE_DIRECTORY", "") + "/allowed"),
}


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    worked = [name for name, attempt in {**FORBIDDEN, **ALLOWED}.items() if _works(attempt)]
    os.write(1, json.dumps(worked).encode())
