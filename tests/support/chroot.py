# SPDX-License-Identifier: MIT
"""Runs commands in another root, as a container engine does in a build."""

import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

# Provided by an engine for a build: name resolution, and pip's settings of this host.
_NAMES: Final = (Path("/etc/resolv.conf"),)
_REGISTRY: Final = (Path("/etc/pip.conf"), Path("/etc/xdg/pip"), Path("/etc/ssl/certs"))
# An installation of ca-certificates writes there; its files vanish with the command.
_OVERLAY: Final = """\
mkdir -p {there}; over=$(mktemp -d); mount -t tmpfs tmpfs $over; mkdir $over/upper $over/work
mount -t overlay -o lowerdir={path},upperdir=$over/upper,workdir=$over/work overlay {there}
umount -l $over; rmdir $over"""


def run_in(
    root: Path,
    command: str,
    log: Path,
    *,
    workdir: str = "/",
    binds: Iterable[Path] = (),
    registry: bool = True,
) -> None:
    """Run a shell command with the host's processes, devices, kernel files and network.

    Args:
        root: The root; all mounts are removed afterwards.
        command: Script for `sh -eu`.
        log: A file to which its output is appended.
        workdir: Its working directory.
        binds: Further directories of the host, at the same path and writable.
        registry: Whether pip has this host's settings and certificates.
    """
    steps = ["mount -t proc proc proc", "mount --rbind /dev dev", "mount --rbind /sys sys"]
    for path in (*_NAMES, *(_REGISTRY if registry else ())):
        there = shlex.quote(f".{path}")
        if path.is_dir():
            steps.append(_OVERLAY.format(there=there, path=shlex.quote(str(path))))
        elif path.exists():
            steps.append(f"mkdir -p {shlex.quote(f'.{path.parent}')}; touch {there}")
            steps.append(f"mount --bind {shlex.quote(str(path))} {there}")
            steps.append(f"mount -o remount,bind,ro {there}")
    for path in binds:
        there = shlex.quote(f".{path}")
        steps.append(f"mkdir -p {there}; mount --bind {shlex.quote(str(path))} {there}")
    inner = shlex.join(["chroot", ".", "sh", "-euc", f"cd {shlex.quote(workdir)}; {command}"])
    # `ip netns exec` wants a root that is a mount point.
    there = shlex.quote(str(root))
    script = "\n".join([f"mount --bind {there} {there}; cd {there}", *steps, f"exec {inner}"])
    with log.open("ab") as out:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
        )
    assert done.returncode == 0, f"{command}: see {log}"
