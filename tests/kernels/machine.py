# SPDX-License-Identifier: MIT
"""Boots a kernel in QEMU, emulated, with systemd as its first process, and reads the job's report.

The console of the machine goes to a log. Its second serial line carries the report, JSON lines; a
port of virtio-serial connects to the fuzz, which runs here and plays packets there. Disks are
opened as snapshots, so each run begins from the same state.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import orjson

from tests.kernels.fetch import Fetched

_MEMORY_MB: Final = 1500
# Modules that mount the disks.
_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4")
_DECOMPRESS: Final = {".xz": ("xz", "-dc"), ".zst": ("zstd", "-qdc")}
# All that QEMU emulates, but with page tables of four levels, because a walk of five takes longer.
_CPU: Final = "max,la57=off"
# Exit status of `timeout` after it has ended the machine.
_TIMED_OUT: Final = 124

# switch_root enters the root, so modules on demand load from there.
_INIT: Final = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
n=0
until [ -b /dev/vdb ] || [ $n = 100 ]; do $b sleep 0.1; n=$((n + 1)); done
$b mount -t ext4 /dev/vda /new || $b poweroff -f
$b mkdir -p /new/usr/lib/modules
$b mount -t ext4 /dev/vdb /new/usr/lib/modules
for d in proc sys dev; do $b mount --move /$d /new/$d; done
$b mount -t tmpfs tmp /new/tmp
$b mount -t tmpfs -o mode=755 run /new/run
$b mkdir -p /new/run/systemd/system
$b cp -r /new/guard/tests/kernels/units/. /new/run/systemd/system
exec $b switch_root /new /lib/systemd/systemd
"""


class Machine:
    """A machine that has been started; `close` ends it.

    Attributes:
        ended: Whether it has powered off, or was ended after its time limit.
    """

    def __init__(
        self, kernel: Fetched, root: Path, log: Path, limit_s: float, fuzz: Sequence[str]
    ) -> None:
        """Boot `kernel`.

        Args:
            kernel: The kernel to boot.
            root: The disk of the root file system, with the job in /guard.
            log: File for the console.
            limit_s: Time limit of the machine, seconds.
            fuzz: Arguments of `tests.fuzz_kernel`; none for a job without it.
        """
        self.ended = False
        self._rest = b""
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="nfq-guard-kernels-"))
            )
            report = folder / "report"
            report.touch()
            self._report = stack.enter_context(report.open("rb"))
            disks = [
                f"file={disk},format=raw,if=virtio,snapshot=on" for disk in (root, kernel.disk)
            ]
            line, far_end = socket.socketpair()
            stack.callback(line.close)
            stack.callback(far_end.close)
            command = [
                "timeout", "--kill-after=5", str(limit_s),
                "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", _CPU, "-smp", "2",
                "-m", str(_MEMORY_MB), "-display", "none", "-no-reboot", "-nic", "none",
                "-serial", "stdio", "-serial", f"file:{report}",
                "-kernel", str(kernel.image), "-initrd", str(_initramfs(kernel, folder)),
                *(word for disk in disks for word in ("-drive", disk)),
                "-device", "virtio-serial", "-chardev", f"socket,id=fuzz,fd={far_end.fileno()}",
                "-device", "virtserialport,chardev=fuzz",
                "-append", "console=ttyS0 panic=-1 quiet mitigations=off systemd.unit=job.target "
                "systemd.show_status=0 systemd.log_target=journal",
            ]  # fmt: skip
            with log.open("wb") as console:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                    pass_fds=[far_end.fileno()],
                )  # fmt: skip
            stack.callback(_end, self._process)
            if fuzz:
                words = ["-m", "tests.fuzz_kernel", "--machine", str(line.fileno()), *fuzz]
                with log.with_suffix(".fuzz.log").open("wb") as output:
                    process = subprocess.Popen(
                        [sys.executable, *words], pass_fds=[line.fileno()],
                        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    )  # fmt: skip
                stack.callback(_end, process)
            line.close()
            far_end.close()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine, if it still runs, and remove its files."""
        self._stack.close()

    @property
    def timed_out(self) -> bool:
        """Whether it was ended by its time limit; valid once it has ended."""
        return self._process.poll() == _TIMED_OUT

    def records(self) -> list[dict[str, Any]]:
        """New lines of the report since the last call; sets `ended`."""
        self.ended = self._process.poll() is not None
        *whole, self._rest = (self._rest + self._report.read()).split(b"\n")
        return [orjson.loads(line) for line in whole]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def _initramfs(kernel: Fetched, folder: Path) -> Path:
    """The initramfs: a busybox, and the modules that mount the disks."""
    content = folder / "initramfs"
    for name in ("bin", "proc", "sys", "dev", "new", "modules"):
        (content / name).mkdir(parents=True)
    busybox = subprocess.run(["which", "busybox"], capture_output=True, text=True, check=True)
    (content / "bin" / "busybox").write_bytes(Path(busybox.stdout.strip()).read_bytes())
    (content / "bin" / "busybox").chmod(0o755)
    (content / "init").write_text(_INIT, encoding="ascii")
    (content / "init").chmod(0o755)
    for number, module in enumerate(_load_order(kernel.modules)):
        octets = module.read_bytes()
        if module.suffix in _DECOMPRESS:
            unpack = _DECOMPRESS[module.suffix]
            octets = subprocess.run(unpack, input=octets, capture_output=True, check=True).stdout
        (content / "modules" / f"{number:03}.ko").write_bytes(octets)
    names = "\n".join(str(path.relative_to(content)) for path in sorted(content.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        cwd=content, input=names.encode(), capture_output=True, check=True,
    )  # fmt: skip
    archive = folder / "initramfs.cpio"
    archive.write_bytes(packed.stdout)
    return archive


def _load_order(modules: Path) -> list[Path]:
    """Module files, each after its dependencies; built-in modules have none."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text(encoding="ascii").splitlines():
        file, _, others = line.partition(":")
        needs[file] = others.split()
    order: dict[str, None] = {}
    for name in _MODULES:
        for file, needed in needs.items():
            if Path(file).name.split(".")[0] == name:
                # modules.dep lists the nearest first.
                order.update(dict.fromkeys((*reversed(needed), file)))
    return [modules / file for file in order]
