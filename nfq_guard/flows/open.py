# SPDX-License-Identifier: MIT
"""Chooses the best evidence that this host gives, and says in one line what a better one lacks."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

from nfq_guard.errors import NfqGuardError
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.flows import capabilities
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
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
class NoFlows:
    """Nothing can be looked up."""

    evidence: Final = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        """None for each."""
        return [None] * len(tuples)

    def close(self) -> None:
        """There is nothing to close."""


def open_flows(
    zones: Sequence[int] = (0,),
) -> tuple[BpfFlows | CtnetlinkFlows | NoFlows, str | None]:
    """The best lookup there is, and one line on why it is not a better one; None: it is the best.

    The caller closes it.

    Args:
        zones: Conntrack zones to try for each tuple, in order; at least one.
    """
    try:
        netlink = CtnetlinkFlows(zones)
    except NfqGuardError as error:
        # BPF takes CAP_NET_ADMIN too; the line names all that is missing.
        return NoFlows(), f"no flow can be looked up: {without_capabilities() or error}"
    try:
        return BpfFlows(zones, others=netlink), None
    except LoadError as error:
        lack = why_not(error)
    except (NfqGuardError, OSError) as error:
        lack = str(error)
    return netlink, f"the kernel's window cannot be read, only state and translation: {lack}"


def why_not(error: LoadError) -> str:
    """What has to change for the program to load, in one line; the likeliest cause first."""
    said = " ".join(error.warnings)
    if error.code == 0 and not error.warnings:
        return f"{LIBRARY} is missing or too old (Debian package libbpf1): {error}"
    if error.code in _REFUSED or "EPERM" in said or "Operation not permitted" in said:
        missing = without_capabilities()
        if missing:
            return missing
        if Path("/proc/self/ns/user").stat().st_ino != _INIT_USER_NAMESPACE:
            return "BPF needs the host's user namespace, and this process is in another"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "kernel option CONFIG_DEBUG_INFO_BTF is missing (no /sys/kernel/btf/vmlinux)"
    if "bpf_skb_ct_lookup" in said and "not found" in said:
        return _without_lookup_function()
    if _jit_is_off():
        return "the BPF JIT is off: set net.core.bpf_jit_enable=1"
    return f"BPF program not taken by the kernel ({_code(error.code)}): {error}"


def without_capabilities() -> str:
    """Which of the capabilities for BPF this process lacks; empty when it has them all."""
    held = capabilities.effective()
    missing = [name for name, number in _CAPABILITIES.items() if not held >> number & 1]
    if not missing:
        return ""
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"


def _without_lookup_function() -> str:
    if Path("/sys/kernel/btf/nf_conntrack").exists():
        if not capabilities.has(capabilities.SYS_ADMIN):
            return (
                "CAP_SYS_ADMIN is missing: nf_conntrack is a module here, and only with that "
                "may a process open the type information of modules"
            )
    elif Path("/sys/module/nf_conntrack/initstate").exists():
        return "kernel option CONFIG_DEBUG_INFO_BTF_MODULES is missing: nf_conntrack is a module"
    return (
        "the kernel has no bpf_skb_ct_lookup: it takes 5.18 or later with nf_conntrack present, "
        f"this is {os.uname().release}"
    )


def _jit_is_off() -> bool:
    try:
        setting = Path("/proc/sys/net/core/bpf_jit_enable").read_text(encoding="ascii")
    except OSError:
        return False
    return setting.strip() == "0"


def _code(number: int) -> str:
    return errno.errorcode.get(number, str(number))
