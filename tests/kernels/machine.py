# SPDX-License-Identifier: MIT
"""Boots a kernel in QEMU, emulated, and collects what the job inside reports.

The console of the machine goes to a log. Its second serial line carries the report, JSON lines.
Disks are opened as snapshots, so that each run begins from the same state.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from tests.kernels.fetch import Fetched

_MEMORY_MB: Final = 1500
# What mounts the disks: Debian builds these as modules.
_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4")
_DECOMPRESS: Final = {".xz": ("xz", "-dc"), ".zst": ("zstd", "-qdc")}

# The root is entered by switch_root: modules that the kernel asks for load from there.
_INIT: Final = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
n=0
until [ -b /dev/vdc ] || [ $n = 100 ]; do $b sleep 0.1; n=$((n + 1)); done
$b mount -t ext4 /dev/vda /new || $b poweroff -f
$b mkdir -p /new/usr/lib/modules /new/guard
$b mount -t ext4 /dev/vdb /new/usr/lib/modules
$b mount -t ext4 /dev/vdc /new/guard
for d in proc sys dev; do $b mount --move /$d /new/$d; done
$b mount -t tmpfs tmp /new/tmp
$b mount -t tmpfs run /new/run
$b mount -t bpf bpf /new/sys/fs/bpf
$b mkdir -p /new/run/netns /new/dev/pts
$b mount -t devpts pts /new/dev/pts
exec $b switch_root /new /bin/sh /guard/tests/kernels/first.sh
"""


def run(
    kernel: Fetched, root: Path, tree: Path, log: Path, limit_s: float
) -> Iterator[dict[str, Any]]:
    """Boot `kernel` and yield the records of its report as they come.

    Args:
        kernel: What to boot.
        root: The disk of the root file system.
        tree: The disk with the job; it becomes /guard.
        log: Where the console goes.
        limit_s: When the machine is ended by force.

    Raises:
        subprocess.TimeoutExpired: It was.
    """
    with tempfile.TemporaryDirectory(prefix="nfq-guard-kernels-") as name:
        folder = Path(name)
        report = folder / "report"
        report.touch()
        disks = [
            f"file={disk},format=raw,if=virtio,snapshot=on" for disk in (root, kernel.disk, tree)
        ]
        command = [
            "nice", "-n", "10", "timeout", "--kill-after=5", str(limit_s), "qemu-system-x86_64",
            "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(_MEMORY_MB),
            "-display", "none", "-no-reboot", "-nic", "none",
            "-serial", "stdio", "-serial", f"file:{report}",
            "-kernel", str(kernel.image), "-initrd", str(_initramfs(kernel, folder)),
            *(word for disk in disks for word in ("-drive", disk)),
            "-append", "console=ttyS0 panic=-1 quiet mitigations=off",
        ]  # fmt: skip
        with log.open("wb") as console, report.open("rb") as lines:
            machine = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
            try:
                yield from _follow(machine, lines)
            finally:
                machine.terminate()
                machine.wait()
        if machine.returncode == 124:
            raise subprocess.TimeoutExpired(command, limit_s)


def _follow(machine: "subprocess.Popen[bytes]", lines: BinaryIO) -> Iterator[dict[str, Any]]:
    """Each line of the report, once it is whole, until the machine has ended."""
    rest = b""
    ended = False
    while not ended:
        try:
            machine.wait(0.5)
            ended = True
        except subprocess.TimeoutExpired:
            pass
        *whole, rest = (rest + lines.read()).split(b"\n")
        for line in whole:
            record: dict[str, Any] = orjson.loads(line)
            yield record


def _initramfs(kernel: Fetched, folder: Path) -> Path:
    """What the kernel starts with: a busybox, and the modules that mount the disks."""
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
    """Files to load, each after those that it needs; what is built in has none."""
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
