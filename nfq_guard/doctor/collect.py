# SPDX-License-Identifier: MIT
"""Reads the state of the host, in the network namespace of the calling thread.

Read-only. A source that cannot be read yields an empty value, which `doctor.examine` reports.
"""

import json
import re
from pathlib import Path
from typing import Final

from nfq_guard.doctor.interfaces import Interface
from nfq_guard.doctor.plan import RULE_FILES, SYSCTL_FILES
from nfq_guard.doctor.sysctls import KEYS
from nfq_guard.errors import UnavailableError
from nfq_guard.firewall.xtables import System

NET: Final = Path("/proc/thread-self/net")
SYSCTLS: Final = Path("/proc/sys/net")
_TABLE_FLAGS: Final = frozenset({"dormant", "owner", "persist"})
_FLAGGED: Final = re.compile(
    r'(?P<head>\{"table": \{"family": "(?P<family>\w+)", "name": "(?P<name>[^"]+)", '
    r'"handle": \d+, "flags": )(?P<flags>"[^"]*"|\[[^]]*\])'
)
_SYS: Final = Path("/sys/class/net")


def text(path: Path) -> str:
    """The text of a file; empty if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """The number that a file holds; None if the file is missing or holds anything else."""
    value = text(path).strip()
    return int(value) if value.isdecimal() else None


def output(*argv: str) -> str | None:
    """Standard output of a program; None if the program is missing or fails."""
    system = System()
    if not system.find(argv[0]):
        return None
    try:
        done = system.run(list(argv), "")
    except (OSError, UnavailableError):
        return None
    return done.stdout if done.status == 0 else None


def listed_by_nft(*words: str) -> str | None:
    """The output of `nft -j list`; None where nft is not installed.

    Raises:
        UnavailableError: nft failed, as nft 1.0 does on a verdict map of ranges.
    """
    argv = ["nft", "-j", "list", *words]
    system = System()
    if not system.find(argv[0]):
        return None
    done = system.run(argv, "")
    if done.status:
        lines = done.stderr.strip().splitlines()
        how = lines[0] if lines else f"ended with status {done.status}"
        raise UnavailableError(f"{' '.join(argv)}: {how}")
    return _FLAGGED.sub(_with_flags, done.stdout)


def _with_flags(table: re.Match[str]) -> str:
    """A table of the listing with its flags; nft 1.0.6 has any word in place of them."""
    flags = set(re.findall(r'"([^"]*)"', table["flags"]))
    if flags <= _TABLE_FLAGS:
        return table[0]
    listed = output("nft", "list", "table", table["family"], table["name"]) or ""
    found = re.search(r"^\s*flags (.*)$", listed, re.MULTILINE)
    words = re.split(r"[,\s]+", found[1].strip()) if found is not None else []
    return f"{table['head']}{json.dumps(words)}"


def sysctl_values() -> dict[str, str]:
    """Values by key, for those of `sysctls.KEYS` that the kernel has."""
    values = {key: text(SYSCTLS / key.replace(".", "/")).strip() for key in KEYS}
    return {key: value for key, value in values.items() if value}


def boot_files() -> dict[str, str]:
    """The contents of the existing files that restore rules and sysctls at boot, by path."""
    paths = [Path(name) for name in RULE_FILES]
    for name in SYSCTL_FILES:
        path = Path(name)
        paths += sorted(path.glob("*.conf")) if path.is_dir() else [path]
    return {str(path): text(path) for path in paths if path.is_file()}


def reverse_path_filters() -> dict[str, str]:
    """`rp_filter` by interface."""
    folder = SYSCTLS / "ipv4" / "conf"
    if not folder.is_dir():
        return {}
    values = {path.name: text(path / "rp_filter").strip() for path in sorted(folder.iterdir())}
    return {name: value for name, value in values.items() if value.isdecimal()}


def bridge_hands_over() -> bool:
    """Whether packets of either family that this namespace bridges traverse iptables and nft.

    By the sysctl of all bridges, or by the option of a single one.
    """
    keys = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables")
    of_all = [number(SYSCTLS / key) for key in keys]
    if of_all == [None, None]:  # without br_netfilter the option has no effect
        return False
    return 1 in of_all or _a_bridge_hands_over()


def _a_bridge_hands_over() -> bool:
    listed = output("ip", "-json", "-details", "link", "show", "type", "bridge")
    try:
        options = [link["linkinfo"]["info_data"] for link in json.loads(listed or "[]") if link]
        return any(
            each.get(f"nf_call_{name}") == 1
            for each in options
            for name in ("iptables", "ip6tables")
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def tracked_flows() -> int:
    """The number of entries in conntrack's table."""
    return number(SYSCTLS / "netfilter" / "nf_conntrack_count") or 0


def vrf_names() -> list[str]:
    """The VRFs of this namespace."""
    listed = output("ip", "-json", "link", "show", "type", "vrf")
    try:
        # ip lists a link of another type as an empty object.
        return [link["ifname"] for link in json.loads(listed or "[]") if link]
    except (ValueError, LookupError, TypeError):
        return []


def forwards() -> bool:
    """Whether this namespace forwards packets of either family."""
    return bool(forwarded())


def forwarded() -> set[int]:
    """The families of which this namespace forwards packets."""
    keys = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
    return {family for family, key in keys.items() if number(SYSCTLS / key) == 1}


def physical_interfaces() -> list[Interface]:
    """The interfaces of this namespace that are backed by a device."""
    here = {line.partition(":")[0].strip() for line in text(NET / "dev").splitlines()[2:]}
    interfaces: list[Interface] = []
    if not _SYS.is_dir():
        return interfaces
    for folder in sorted(_SYS.iterdir()):
        if folder.name in here and (folder / "device").exists():
            queues = sorted((folder / "queues").glob("rx-*"))
            interfaces.append(
                Interface(
                    name=folder.name,
                    rps=[bool(text(queue / "rps_cpus").strip("0,\n ")) for queue in queues],
                    rfs=[number(queue / "rps_flow_cnt") or 0 for queue in queues],
                    irqs=_interrupts_of(folder),
                )
            )
    return interfaces


def _interrupts_of(folder: Path) -> frozenset[str]:
    """The interface's name and its interrupt numbers.

    The numbers are listed under the device itself or, for virtio, under its parent bus device.
    """
    device = (folder / "device").resolve()
    names = {folder.name}
    for owner in (device, device.parent):
        if (owner / "msi_irqs").is_dir():
            names |= {irq.name for irq in (owner / "msi_irqs").iterdir()}
            break
    return frozenset(names)
