# SPDX-License-Identifier: MIT
"""The best available source of flow windows, and the capabilities that it takes."""

from collections.abc import Iterator
from typing import Final

from nfq_guard.capabilities import BPF, NET_ADMIN, NET_RAW, PERFMON
from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.flow import Evidence

_WANTED: Final = {"CAP_NET_ADMIN": NET_ADMIN, "CAP_PERFMON": PERFMON, "CAP_BPF": BPF}


def capabilities(effective: int) -> Iterator[Check]:
    """Capabilities of this process, which a daemon started from here would inherit.

    Args:
        effective: Bit mask of the effective set, by capability number.
    """
    missing = [name for name, number in _WANTED.items() if not effective >> number & 1]
    if "CAP_NET_ADMIN" in missing:
        yield problem(
            "capabilities",
            f"missing: {', '.join(missing)}; neither the queue nor the rules can be set up",
            "run it as root, or grant the capabilities",
        )
    elif missing:
        yield warning(
            "capabilities",
            f"missing: {', '.join(missing)}; without them a process can read the window of a flow "
            "only by a program that root has pinned",
            "run `nfq-guard prepare` as root before the daemon starts, as the service does",
        )
    else:
        yield ok("capabilities", f"all held: {', '.join(_WANTED)}")
    if not effective >> NET_RAW & 1:
        yield note(
            "capabilities.net_raw",
            "CAP_NET_RAW is missing: legacy iptables does not work without it",
            "grant it if the rules are to be installed with legacy iptables",
        )


def evidence(best: Evidence, unavailable_reason: str | None) -> Check:
    """The best evidence that could be opened, and why nothing better could."""
    if best is Evidence.BPF:
        return ok("evidence", "the kernel's own window of a flow can be read (bpf)")
    what = unavailable_reason or "reason unknown"
    todo = "provide what is missing"
    if best is Evidence.NONE:
        return problem("evidence", what, todo)
    return warning("evidence", f"best evidence is {best}: {what}", todo)
