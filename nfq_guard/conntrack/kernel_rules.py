# SPDX-License-Identifier: MIT
"""What each generation of kernels calls INVALID (kernel.md 1.11)."""

import re
from dataclasses import dataclass, replace
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
        reinit_by_any_segment: Whether any later segment re-initialises a half-open peer; else
            only one with SYN does, and takes window scaling from both if it is the answer and not
            both asked for it.
        rst_after_challenge_ack: Whether an RST that answers a challenge ACK is let through.
        invalid_close_shortens: Whether INVALID segments with FIN or RST from both ends bring the
            timeout of a settled flow down.
        inexact_rst_spares_timeout: Whether an RST that leaves a settled flow open brings its
            timeout down to that of unacknowledged data, instead of that of CLOSE.
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
    inexact_rst_spares_timeout: bool


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
    inexact_rst_spares_timeout=False,
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
    inexact_rst_spares_timeout=False,
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
    inexact_rst_spares_timeout=False,
)

KERNEL_6_12: Final = replace(KERNEL_6_1, name="6.12", inexact_rst_spares_timeout=True)

KERNELS: Final = {
    rules.name: rules for rules in (KERNEL_5_10, KERNEL_5_15, KERNEL_6_1, KERNEL_6_12)
}

# From which release on each generation holds. The rules of 6.12 came to its stable series late;
# 6.18.44 and 7.2.13 have those of 6.1 (kernel.md 1.7).
_SINCE: Final = (
    ((0, 0, 0), KERNEL_5_10),
    ((5, 15, 0), KERNEL_5_15),
    ((6, 1, 0), KERNEL_6_1),
    ((6, 12, 117), KERNEL_6_12),
    ((6, 13, 0), KERNEL_6_1),
    ((7, 3, 0), KERNEL_6_12),
)


def rules_of(release: str) -> KernelRules:
    """The rules of a kernel release such as `6.18.44-cloud`, or of the generation of that name.

    Raises:
        UsageError: `release` does not begin with two numbers.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        msg = f"kernel release: expected a version such as 6.1, found {release!r}"
        raise UsageError(msg)
    if release in KERNELS:
        return KERNELS[release]
    wanted = tuple(int(part or 0) for part in found.groups())
    return next(rules for since, rules in reversed(_SINCE) if since <= wanted)
