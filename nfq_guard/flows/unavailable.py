# SPDX-License-Identifier: MIT
"""What keeps the BPF lookup from loading on this host, in one line for the operator."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

from nfq_guard import capabilities
from nfq_guard.flows.libbpf import LIBRARY, LoadError

# What BPF with kernel pointers takes (kernel.md 4).
_CAPABILITIES: Final = {
    "CAP_NET_ADMIN": capabilities.NET_ADMIN,
    "CAP_PERFMON": capabilities.PERFMON,
    "CAP_BPF": capabilities.BPF,
}
# The inode number that the kernel gives to the first user namespace.
_INIT_USER_NAMESPACE: Final = 0xEFFFFFFD
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The facts that decide.

    Attributes:
        capabilities: Those in effect, as a bit mask.
        is_init_user_namespace: Whether they count for the host as a whole.
        has_btf: Whether the kernel carries its type information.
        is_conntrack_module: Whether nf_conntrack is a loaded module, not built in.
        has_module_btf: Whether that module carries type information.
        is_jit_on: Whether the kernel compiles BPF programs; without it, it lends no functions.
        release: Of the kernel.
    """

    capabilities: int
    is_init_user_namespace: bool
    has_btf: bool
    is_conntrack_module: bool
    has_module_btf: bool
    is_jit_on: bool
    release: str

    @classmethod
    def here(cls) -> Self:
        """Of this process on this machine."""
        return cls(
            capabilities=capabilities.effective(),
            is_init_user_namespace=(
                Path("/proc/self/ns/user").stat().st_ino == _INIT_USER_NAMESPACE
            ),
            has_btf=Path("/sys/kernel/btf/vmlinux").exists(),
            is_conntrack_module=Path("/sys/module/nf_conntrack/initstate").exists(),
            has_module_btf=Path("/sys/kernel/btf/nf_conntrack").exists(),
            is_jit_on=_jit_setting() != "0",
            release=os.uname().release,
        )

    def has(self, capability: int) -> bool:
        """Whether the capability of this number is in effect."""
        return bool(self.capabilities >> capability & 1)


def without_capabilities(host: Host) -> str:
    """Which of the capabilities for BPF are missing; empty when none is."""
    missing = [name for name, number in _CAPABILITIES.items() if not host.has(number)]
    if not missing:
        return ""
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"


def why_not(error: LoadError, host: Host) -> str:
    """What has to change for the program to load; the likeliest cause where several fit."""
    if error.code == 0 and not error.warnings:
        return f"{LIBRARY} is missing or too old (Debian package libbpf1): {error}"
    said = " ".join(error.warnings)
    if error.code in _REFUSED or "Operation not permitted" in said:
        missing = without_capabilities(host)
        if missing:
            return missing
        if not host.is_init_user_namespace:
            return "BPF needs the host's user namespace, and this process is in another"
    if not host.has_btf:
        return "kernel option CONFIG_DEBUG_INFO_BTF is missing (no /sys/kernel/btf/vmlinux)"
    if host.is_conntrack_module:
        if not host.has_module_btf:
            return (
                "kernel option CONFIG_DEBUG_INFO_BTF_MODULES is missing: nf_conntrack is a module"
            )
        if not host.has(capabilities.SYS_ADMIN):
            return (
                "CAP_SYS_ADMIN is missing: nf_conntrack is a module here, and only with that may "
                "a process open the type information of modules"
            )
    if "bpf_skb_ct_lookup" in said and "not found" in said:
        return (
            "the kernel has no bpf_skb_ct_lookup: it takes 5.18 or later with nf_conntrack "
            f"loaded, this is {host.release}"
        )
    if not host.is_jit_on:
        return "the BPF JIT is off: set net.core.bpf_jit_enable=1"
    return f"the kernel did not take the program ({_name(error.code)}): {error}"


def _jit_setting() -> str:
    try:
        return Path("/proc/sys/net/core/bpf_jit_enable").read_text(encoding="ascii").strip()
    except OSError:
        # Not shown in a network namespace other than the first, or always on.
        return ""


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
