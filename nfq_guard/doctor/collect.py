# SPDX-License-Identifier: MIT
"""Reading what there is to be read, in the network namespace of the calling thread.

Nothing here changes anything. What cannot be read is empty, and `doctor.examine` says so.
"""

import gzip
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from nfq_guard.doctor.interfaces import Interface
from nfq_guard.doctor.sysctls import KEYS
from nfq_guard.errors import UnavailableError
from nfq_guard.firewall.xtables import System

NET: Final = Path("/proc/thread-self/net")
SYSCTLS: Final = Path("/proc/sys/net")
_SYS: Final = Path("/sys/class/net")


def text(path: Path) -> str:
    """A file's text; empty when it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """A file that holds one number."""
    value = text(path).strip()
    return int(value) if value.isdigit() else None


def output(*argv: str) -> str | None:
    """What a program prints; None when it is missing or fails."""
    system = System()
    if not system.find(argv[0]):
        return None
    try:
        done = system.run(list(argv), "")
    except (OSError, UnavailableError):
        return None
    return done.stdout if done.status == 0 else None


def kernel_configuration(release: str) -> str:
    """From /proc, else as distributions put it into /boot."""
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode("utf-8", "replace")
    except OSError:
        return text(Path("/boot") / f"config-{release}")


def sysctl_values() -> dict[str, str]:
    """Those of `sysctls.KEYS` that the kernel has."""
    found = {key: text(SYSCTLS / key.replace(".", "/")).strip() for key in KEYS}
    return {key: value for key, value in found.items() if value}


def reverse_path_filters() -> dict[str, str]:
    """`rp_filter` by interface."""
    folder = SYSCTLS / "ipv4" / "conf"
    if not folder.is_dir():
        return {}
    found = {one.name: text(one / "rp_filter").strip() for one in sorted(folder.iterdir())}
    return {name: value for name, value in found.items() if value.isdigit()}


def forwards() -> bool:
    """Whether this namespace forwards packets of either family."""
    keys = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    return any(number(SYSCTLS / key) == 1 for key in keys)


def is_guard(owner: str) -> bool:
    """Whether the process of a queue, as `nfqueue.counters.process_of` names it, is a guard."""
    found = re.search(r"\(pid (\d+)\)$", owner)
    if found is None:
        return False
    return runs_guard(text(Path("/proc", found[1], "cmdline")).split("\0"))


def runs_guard(words: Sequence[str]) -> bool:
    """Whether a command line is one of ours: the script, or the package run by Python."""
    if any(Path(word).name == "nfq-guard" for word in words[:2]):
        return True
    return any(
        option == "-m" and module.partition(".")[0] == "nfq_guard"
        for option, module in pairwise(words)
    )


def physical_interfaces() -> list[Interface]:
    """Those of this namespace that a device is behind."""
    here = {line.partition(":")[0].strip() for line in text(NET / "dev").splitlines()[2:]}
    found: list[Interface] = []
    if not _SYS.is_dir():
        return found
    for folder in sorted(_SYS.iterdir()):
        if folder.name in here and (folder / "device").exists():
            queues = sorted((folder / "queues").glob("rx-*"))
            found.append(
                Interface(
                    name=folder.name,
                    rps=[bool(text(one / "rps_cpus").strip("0,\n ")) for one in queues],
                    rfs=[number(one / "rps_flow_cnt") or 0 for one in queues],
                    irqs=_interrupts_of(folder),
                )
            )
    return found


def _interrupts_of(folder: Path) -> frozenset[str]:
    """Numbers from the device, or from the bus device above it as virtio has it, and its names."""
    device = (folder / "device").resolve()
    words = {folder.name}
    for one in (device, device.parent):
        if (one / "msi_irqs").is_dir():
            words |= {irq.name for irq in (one / "msi_irqs").iterdir()}
            break
    return frozenset(words)
