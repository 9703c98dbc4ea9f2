# SPDX-License-Identifier: MIT
"""Checks of the kernel: its conntrack rules and its type information."""

from typing import Final

from nfq_guard.conntrack.kernel_rules import KernelGuess, KernelRules, guess_rules
from nfq_guard.doctor.check import Check, note, ok, warning
from nfq_guard.errors import UsageError
from nfq_guard.finding import Reason
from nfq_guard.probe.recognise import LIVE, Recognised

_OLD_ONLY: Final = (Reason.SEQ_UNDER, Reason.ACK_UNDER)


def rules(release: str, found: Recognised | str) -> Check:
    """The generation of conntrack's rules that this kernel follows.

    Args:
        release: Its release.
        found: The result of the probe, or why no probe was possible.
    """
    guess = _guess(release)
    suggested = guess.rules.name if guess is not None else "no known generation"
    if isinstance(found, str):
        return note(
            "kernel.rules",
            f"release {release} suggests the rules of {suggested}; not confirmed: {found}",
        )
    if found.differences:
        what = ", ".join(found.differences)
        return warning(
            "kernel.rules",
            "this kernel follows no known generation of rules: the nearest is "
            f"{found.nearest.name}, but it differs in {what}",
            "replay captures of this host with --kernel live",
        )
    known = f"this kernel, tested with packets, follows the rules of {found.rules.name}"
    if guess is not None and guess.rules != found.rules:
        return note(
            "kernel.rules",
            f"{known}; its release {release} suggests those of {suggested}",
            f"replay captures of this host with --kernel {found.rules.name}",
        )
    return ok("kernel.rules", known)


def _guess(release: str) -> KernelGuess | None:
    try:
        return guess_rules(release)
    except UsageError:
        return None


def reasons(release: str, found: Recognised | str) -> Check:
    """The reasons that this kernel can produce (kernel.md 1.11). Takes the arguments of `rules`."""
    guess = _guess(release)
    if not isinstance(found, str):
        rules, doubt = found.rules, ""
    elif guess is not None:
        rules = guess.rules
        doubt = f" (a guess: {guess.doubt})" if guess.doubt else ""
    else:
        return note("kernel.reasons", f"unknown kernel release {release!r}")
    names = " and ".join(_OLD_ONLY)
    if rules.old_segments_pass:
        what = f"by the rules of {_name(rules)}{doubt}, {names} do not occur"
        return ok("kernel.reasons", what)
    return note(
        "kernel.reasons",
        f"by the rules of {_name(rules)}{doubt}, late retransmissions and old ACKs are INVALID too "
        f"({names})",
        "expect harmless packets among the INVALID ones; kernel 6.1 and later accept them",
    )


def _name(rules: KernelRules) -> str:
    return "this very kernel" if rules.name == LIVE else rules.name


def type_information(*, available: bool) -> Check:
    """BTF, which the BPF program needs to locate the fields of a flow."""
    if available:
        return ok("kernel.btf", "the kernel provides its type information (BTF)")
    return note(
        "kernel.btf",
        "/sys/kernel/btf/vmlinux does not exist: the window of a flow cannot be read through BPF",
        "run a kernel with CONFIG_DEBUG_INFO_BTF",
    )
