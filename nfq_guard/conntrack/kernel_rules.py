# SPDX-License-Identifier: MIT
"""What each generation of kernels calls INVALID (kernel.md 1.11)."""

from dataclasses import dataclass
from typing import Final, final

from nfq_guard.errors import UsageError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """The points in which generations of conntrack differ.

    Attributes:
        name: The generation, as `--kernel` takes it.
        old_segments_pass: Whether a segment below the window (bounds II and IV), or at most one
            receiver window above it, is ignored instead of INVALID.
        overshoot_moves_end: Whether that last case advances `td_end`.
        closing_takes_any_rst: Whether an RST is accepted unchecked once the flow is closing.
        ignores_invalid_rst: Whether the sysctl `nf_conntrack_tcp_ignore_invalid_rst` exists, and
            an RST with sequence number 0 in a flow that is not settled goes to the window check.
        rst_after_syn_checked: Whether an RST is held against `td_maxack` after an ignored SYN.
        reinit_by_any_segment: Whether any later segment re-initialises a half-open peer, and
            takes window scaling from both unless both asked for it; else only one with SYN does,
            and only the answering one takes scaling away.
        rst_after_challenge_ack: Whether an RST that answers a challenge ACK is let through.
        invalid_close_shortens: Whether INVALID segments with FIN or RST from both ends bring the
            timeout of a settled flow down.
    """

    name: str
    old_segments_pass: bool
    overshoot_moves_end: bool
    closing_takes_any_rst: bool
    ignores_invalid_rst: bool
    rst_after_syn_checked: bool
    reinit_by_any_segment: bool
    rst_after_challenge_ack: bool
    invalid_close_shortens: bool


KERNEL_5_10: Final = KernelRules(
    name="5.10",
    old_segments_pass=False,
    overshoot_moves_end=False,
    closing_takes_any_rst=False,
    ignores_invalid_rst=False,
    rst_after_syn_checked=True,
    reinit_by_any_segment=True,
    rst_after_challenge_ack=False,
    invalid_close_shortens=False,
)
KERNEL_5_15: Final = KernelRules(
    name="5.15",
    old_segments_pass=False,
    overshoot_moves_end=True,
    closing_takes_any_rst=True,
    ignores_invalid_rst=True,
    rst_after_syn_checked=False,
    reinit_by_any_segment=True,
    rst_after_challenge_ack=False,
    invalid_close_shortens=False,
)
KERNEL_6_1: Final = KernelRules(
    name="6.1",
    old_segments_pass=True,
    overshoot_moves_end=True,
    closing_takes_any_rst=True,
    ignores_invalid_rst=True,
    rst_after_syn_checked=False,
    reinit_by_any_segment=False,
    rst_after_challenge_ack=True,
    invalid_close_shortens=True,
)

KERNELS: Final = {rules.name: rules for rules in (KERNEL_5_10, KERNEL_5_15, KERNEL_6_1)}


def rules_of(release: str) -> KernelRules:
    """The rules of a kernel release such as `6.18.44-cloud`: the newest generation up to it.

    Raises:
        UsageError: `release` does not begin with two numbers.
    """
    parts = release.split("-", maxsplit=1)[0].split(".")
    try:
        wanted = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        msg = f"kernel release: expected a version such as 6.1, found {release!r}"
        raise UsageError(msg) from None
    chosen = KERNEL_5_10
    for rules in KERNELS.values():
        major, minor = rules.name.split(".")
        if (int(major), int(minor)) <= wanted:
            chosen = rules
    return chosen
