# SPDX-License-Identifier: MIT
"""The kernel: what it calls INVALID, and whether it has what the guard needs."""

from collections.abc import Iterator, Mapping
from typing import Final

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.doctor.check import Check, note, ok, problem
from nfq_guard.errors import UsageError
from nfq_guard.finding import Reason

_OLD_ONLY: Final = (Reason.SEQ_UNDER, Reason.ACK_UNDER)

# What the guard cannot be without: the option, and what it is for.
_NEEDED: Final = {
    "CONFIG_NF_CONNTRACK": "connection tracking",
    "CONFIG_NF_CT_NETLINK": "looking flows up",
    "CONFIG_NETFILTER_NETLINK_QUEUE": "queues",
    "CONFIG_NETFILTER_XT_TARGET_NFQUEUE": "the rule that fills the queue",
    "CONFIG_NETFILTER_XT_MATCH_CONNTRACK": "the rule that tells INVALID packets",
}


def reasons(release: str) -> Check:
    """What this release can produce (kernel.md 1.11)."""
    try:
        rules = rules_of(release)
    except UsageError:
        return note("kernel.reasons", f"release {release!r} is no version that is known")
    names = " and ".join(_OLD_ONLY)
    if rules.old_segments_pass:
        what = f"kernel {release} judges as {rules.name} does: {names} do not occur"
        return ok("kernel.reasons", what)
    return note(
        "kernel.reasons",
        f"kernel {release} judges as {rules.name} does: late retransmissions and old ACKs are "
        f"INVALID too ({names})",
        "expect harmless packets among the INVALID ones; kernels from 6.1 on let them pass",
    )


def parse_options(text: str) -> dict[str, str]:
    """A kernel configuration as the file has it; options that are not set are absent."""
    options: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.startswith("CONFIG_"):
            options[name] = value
    return options


def options(configured: Mapping[str, str]) -> Iterator[Check]:
    """The options that the guard needs; `configured` empty: the configuration is not to be seen."""
    if not configured:
        yield note(
            "kernel.options",
            "the kernel's configuration is neither in /proc/config.gz nor in /boot",
        )
        return
    missing = {name: use for name, use in _NEEDED.items() if name not in configured}
    for name, use in missing.items():
        yield problem("kernel.options", f"{name} is not set: no {use}", "run a kernel that has it")
    if not missing:
        yield ok("kernel.options", "all options that the guard needs are set")
    if "CONFIG_NFT_QUEUE" not in configured:
        yield note(
            "kernel.nft_queue",
            "CONFIG_NFT_QUEUE is not set: native nft rules cannot fill a queue",
            "let nfq-guard install its rules through iptables, of either backend",
        )


def queues(*, file_there: bool, configured: Mapping[str, str]) -> Check:
    """Whether packets can be queued; a module may not be loaded yet."""
    if file_there:
        return ok("kernel.nfqueue", "NFQUEUE is there")
    if configured.get("CONFIG_NETFILTER_NETLINK_QUEUE") == "m":
        return note(
            "kernel.nfqueue", "NFQUEUE is a module and not loaded; the guard's start loads it"
        )
    return problem(
        "kernel.nfqueue",
        "NFQUEUE is missing: there is no /proc/net/netfilter/nfnetlink_queue",
        "load nfnetlink_queue, or run a kernel with CONFIG_NETFILTER_NETLINK_QUEUE",
    )


def type_information(*, there: bool) -> Check:
    """BTF, from which the layout of a flow is learnt."""
    if there:
        return ok("kernel.btf", "the kernel describes its own types (BTF)")
    return note(
        "kernel.btf",
        "there is no /sys/kernel/btf/vmlinux: the window of a flow cannot be read through BPF",
        "run a kernel with CONFIG_DEBUG_INFO_BTF",
    )
