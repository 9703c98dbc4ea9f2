# SPDX-License-Identifier: MIT
"""The packets that each generation of kernels calls INVALID (kernel.md 1.11)."""

import re
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

from nfq_guard.errors import UsageError
from nfq_guard.finding import Reason


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """The points in which generations of conntrack differ.

    Attributes:
        name: The generation, as `--kernel` takes it.
        old_segments_pass: Whether a segment below the window (bounds II and IV), or at most one
            receiver window above it, is ignored instead of INVALID.
        overshoot_moves_end: Whether that last case advances `td_end`.
        overshoot_moves_liberal: Whether it also does so if the window is not enforced.
        closing_takes_any_rst: Whether an RST is accepted unchecked once the flow is closing.
        ignores_invalid_rst: Whether the sysctl `nf_conntrack_tcp_ignore_invalid_rst` exists, and
            an RST with sequence number 0 in a flow that is not settled goes to the window check.
        rst_after_syn_checked: Whether an RST is checked against `td_maxack` after an ignored SYN.
        rst_answers_own_syn: Whether an RST passes as the answer to a SYN of its own side too.
        reinit_by_any_segment: Whether any later segment re-initialises a half-open peer, and leaves
            its window scaling; else only one with SYN does.
        any_syn_unscales: Whether a SYN of either side takes window scaling from both if not both
            requested it; else only the answer does.
        rst_after_challenge_ack: Whether an RST that answers a challenge ACK is let through.
        invalid_close_shortens: Whether INVALID segments with FIN or RST from both ends bring the
            timeout of a settled flow down.
        inexact_rst_spares_timeout: Whether an RST that leaves a settled flow open brings its
            timeout down to that of unacknowledged data, instead of that of CLOSE.
    """

    name: str
    old_segments_pass: bool
    overshoot_moves_end: bool
    overshoot_moves_liberal: bool
    closing_takes_any_rst: bool
    ignores_invalid_rst: bool
    rst_after_syn_checked: bool
    rst_answers_own_syn: bool
    reinit_by_any_segment: bool
    any_syn_unscales: bool
    rst_after_challenge_ack: bool
    invalid_close_shortens: bool
    inexact_rst_spares_timeout: bool


KERNEL_5_10: Final = KernelRules(
    name="5.10",
    old_segments_pass=False,
    overshoot_moves_end=False,
    overshoot_moves_liberal=False,
    closing_takes_any_rst=False,
    ignores_invalid_rst=False,
    rst_after_syn_checked=True,
    rst_answers_own_syn=False,
    reinit_by_any_segment=True,
    any_syn_unscales=True,
    rst_after_challenge_ack=False,
    invalid_close_shortens=False,
    inexact_rst_spares_timeout=False,
)
KERNEL_5_14: Final = replace(
    KERNEL_5_10,
    name="5.14",
    closing_takes_any_rst=True,
    ignores_invalid_rst=True,
    rst_after_syn_checked=False,
    rst_answers_own_syn=True,
)
KERNEL_5_15: Final = replace(
    KERNEL_5_14, name="5.15", overshoot_moves_end=True, rst_answers_own_syn=False
)
KERNEL_5_18: Final = replace(
    KERNEL_5_14,
    name="5.18",
    overshoot_moves_end=True,
    reinit_by_any_segment=False,
    rst_after_challenge_ack=True,
)
KERNEL_6_1: Final = replace(
    KERNEL_5_18,
    name="6.1",
    old_segments_pass=True,
    overshoot_moves_liberal=True,
    rst_answers_own_syn=False,
    any_syn_unscales=False,
    invalid_close_shortens=True,
)
KERNEL_6_12: Final = replace(KERNEL_6_1, name="6.12", inexact_rst_spares_timeout=True)

KERNELS: Final = {
    rules.name: rules
    for rules in (KERNEL_5_10, KERNEL_5_14, KERNEL_5_15, KERNEL_5_18, KERNEL_6_1, KERNEL_6_12)
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLog:
    """The form of the kernel's log of INVALID packets (kernel.md 1.12).

    Attributes:
        silent: The reasons without a text. Even if NO_ENTRY has one, an ACK that `tcp_loose`
            forbids to open a flow has none.
    """

    silent: frozenset[Reason]


_SILENT: Final = frozenset({Reason.ICMP_UNRELATED, Reason.NO_ENTRY})
_LOG_5_10: Final = KernelLog(silent=_SILENT)
_LOG_6_2: Final = KernelLog(silent=_SILENT - {Reason.NO_ENTRY})


class _Since(NamedTuple):
    """The first release of a generation."""

    release: tuple[int, int, int]
    rules: KernelRules
    log: KernelLog


# Kernels before 5.10 were not measured; the first row stands in for them. A row holds for its
# series as maintained: 5.15 and 5.19 took over the advance of `td_end` late. What is new in the
# generation of 6.12 came to its stable series late; 6.18.44 and 7.2.13 have the rules of 6.1
# (kernel.md 1.7). Which release after 6.1 began to log a segment that may not open a flow is not
# known (1.4).
_SINCE: Final = (
    _Since((0, 0, 0), KERNEL_5_10, _LOG_5_10),
    _Since((5, 14, 0), KERNEL_5_14, _LOG_5_10),
    _Since((5, 15, 0), KERNEL_5_15, _LOG_5_10),
    _Since((5, 18, 0), KERNEL_5_18, _LOG_5_10),
    _Since((6, 1, 0), KERNEL_6_1, _LOG_5_10),
    _Since((6, 2, 0), KERNEL_6_1, _LOG_6_2),
    _Since((6, 12, 117), KERNEL_6_12, _LOG_6_2),
    _Since((6, 13, 0), KERNEL_6_1, _LOG_6_2),
    _Since((7, 3, 0), KERNEL_6_12, _LOG_6_2),
)
_OLDEST_KNOWN: Final = (5, 10)
_NEWEST_KNOWN: Final = (7, 3)

_RELEASE: Final = re.compile(
    r"(?P<major>[0-9]{1,3})\.(?P<minor>[0-9]{1,3})(?:\.(?P<patch>[0-9]{1,4}))?"
    r"(?P<vendor>[-+._~][-+._~A-Za-z0-9]*)?"
)
# Characters of an unknown release that the error message quotes.
_SHOWN: Final = 40
_CANDIDATE: Final = re.compile(r"-rc[0-9]+\+?")


@final
@dataclass(frozen=True, slots=True)
class KernelGuess:
    """The rules that the release of a kernel suggests.

    Attributes:
        rules: The rules of the generation.
        log: The form of its log.
        doubt: Why that kernel may follow other rules; empty for the name of a generation and for a
            known mainline or stable release.
    """

    rules: KernelRules
    log: KernelLog
    doubt: str


def guess_rules(release: str) -> KernelGuess:
    """The rules of a kernel release such as `6.18.44-cloud`, or of a generation by its name.

    Raises:
        UsageError: `release` is neither.
    """
    found = _RELEASE.fullmatch(release)
    if found is None:
        raise UsageError(
            "kernel release: expected a version such as 6.1 or 5.15.0-91-generic, "
            f"found {release[:_SHOWN]!r}"
        )
    major, minor, patch = (int(found[name] or 0) for name in ("major", "minor", "patch"))
    since = next(row for row in reversed(_SINCE) if row.release <= (major, minor, patch))
    if release in KERNELS:
        return KernelGuess(KERNELS[release], since.log, "")
    return KernelGuess(since.rules, since.log, _doubt((major, minor), found["vendor"] or ""))


def rules_of(release: str) -> KernelRules:
    """The rules of a kernel release or of a generation, as by `guess_rules`.

    Raises:
        UsageError: `release` is neither.
    """
    return guess_rules(release).rules


def _doubt(series: tuple[int, int], vendor: str) -> str:
    doubts: list[str] = []
    if series < _OLDEST_KNOWN:
        doubts.append(
            "kernels before 5.10 were never measured, so which segments they call INVALID is not "
            "known, and the rules of 5.10 stand in"
        )
    elif series > _NEWEST_KNOWN:
        doubts.append("kernels after 7.3 were not measured yet")
    if vendor and not _CANDIDATE.fullmatch(vendor):
        doubts.append("vendors backport changes, so the version only suggests the rules")
    return "; ".join(doubts)
