# SPDX-License-Identifier: MIT
"""Why the BPF lookup is unavailable on this host, in one line for the operator."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, final

from nfq_guard import capabilities
from nfq_guard.flows.libbpf import LIBRARY, LoadError

# The capabilities that BPF with kernel pointers needs (kernel.md 4).
_CAPABILITIES: Final = {
    "CAP_NET_ADMIN": capabilities.NET_ADMIN,
    "CAP_PERFMON": capabilities.PERFMON,
    "CAP_BPF": capabilities.BPF,
}
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
# The message of libbpf about a field that is missing in the kernel's type information.
_NO_FIELD: Final = re.compile(
    r"failed to resolve CO-RE relocation <\w+> \[\d+\] (struct [^.\s]+)\.(\S+)"
)
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The facts on which availability depends.

    Attributes:
        capabilities: The effective set, as a bit mask.
        is_init_user_namespace: Whether the process is in the initial user namespace.
        has_btf: Whether the kernel exposes its type information.
        is_conntrack_module: Whether nf_conntrack is a loaded module, not built in.
        has_module_btf: Whether that module exposes its type information.
        is_jit_on: Whether the BPF JIT is on; programs cannot call kernel functions without it.
        is_locked_down: Whether kernel lockdown is in mode confidentiality.
        release: The kernel's release.
    """

    capabilities: int
    is_init_user_namespace: bool
    has_btf: bool
    is_conntrack_module: bool
    has_module_btf: bool
    is_jit_on: bool
    is_locked_down: bool
    release: str

    @classmethod
    def here(cls) -> Self:
        """The facts about this process and this machine."""
        return cls(
            capabilities=capabilities.effective(),
            is_init_user_namespace=capabilities.is_init_user_namespace(),
            has_btf=Path("/sys/kernel/btf/vmlinux").exists(),
            is_conntrack_module=Path("/sys/module/nf_conntrack/initstate").exists(),
            has_module_btf=Path("/sys/kernel/btf/nf_conntrack").exists(),
            is_jit_on=_jit_setting() != "0",
            is_locked_down="[confidentiality]" in _text(_LOCKDOWN),
            release=os.uname().release,
        )

    def has(self, capability: int) -> bool:
        """Whether the capability of this number is in effect."""
        return bool(self.capabilities >> capability & 1)


def missing_capabilities(host: Host) -> str:
    """The capabilities that BPF needs and that are missing, as a sentence; empty if none is."""
    missing = [name for name, number in _CAPABILITIES.items() if not host.has(number)]
    if not missing:
        return ""
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"


def unavailable_reason(error: LoadError, host: Host) -> str:
    """What must change for the program to load; the likeliest of several possible causes."""
    if error.code == 0 and not error.warnings:
        return f"{LIBRARY} is missing or too old (Debian package libbpf1): {error}"
    # Causes that no capability remedies come first.
    if not host.has_btf:
        return "kernel option CONFIG_DEBUG_INFO_BTF is missing (no /sys/kernel/btf/vmlinux)"
    if host.is_conntrack_module and not host.has_module_btf:
        return "kernel option CONFIG_DEBUG_INFO_BTF_MODULES is missing: nf_conntrack is a module"
    if host.is_locked_down:
        return "kernel lockdown is in mode confidentiality, which keeps BPF from kernel memory"
    said = " ".join(error.warnings)
    if error.code in _REFUSED or "Operation not permitted" in said:
        if not host.is_init_user_namespace:
            # Capabilities of another user namespace do not count for BPF.
            return "BPF needs the host's user namespace, and this process is in another"
        missing = missing_capabilities(host)
        if missing:
            return missing
    if host.is_conntrack_module and not host.has(capabilities.SYS_ADMIN):
        return (
            "CAP_SYS_ADMIN is missing: nf_conntrack is a module here, and only with that may "
            "a process open the type information of modules"
        )
    if "bpf_skb_ct_lookup" in said and "not found" in said:
        return (
            "the kernel has no bpf_skb_ct_lookup: 5.18 or later with nf_conntrack loaded is "
            f"required, this is {host.release}"
        )
    lacking = _NO_FIELD.search(f"{error} {said}")
    if lacking is not None:
        return (
            f"the kernel's {lacking[1]} has no field {lacking[2]}: this version does not know "
            f"{host.release}"
        )
    if not host.is_jit_on:
        return "the BPF JIT is off: set net.core.bpf_jit_enable=1"
    return f"the kernel refused the program ({_name(error.code)}): {error}"


def _jit_setting() -> str:
    # Visible only in the initial network namespace, and not if the JIT is always on.
    return _text(Path("/proc/sys/net/core/bpf_jit_enable")).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
