# SPDX-License-Identifier: MIT
"""Where the windows of flows would come from, and the capabilities for it."""

from collections.abc import Iterator
from typing import Final

from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.flow import Evidence

# Numbers as in capabilities(7).
_WANTED: Final = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
_NET_RAW: Final = 13


def capabilities(effective: int) -> Iterator[Check]:
    """What this process may do, which is what a daemon started from here may do.

    Args:
        effective: The bit mask by capability number.
    """
    missing = [name for name, number in _WANTED.items() if not effective >> number & 1]
    if "CAP_NET_ADMIN" in missing:
        yield problem(
            "capabilities",
            f"missing: {', '.join(missing)}; neither queue nor rules can be had",
            "run it as root, or grant the capabilities",
        )
    elif missing:
        yield warning(
            "capabilities",
            f"missing: {', '.join(missing)}; the window of a flow cannot be read",
            "grant them to the service, or live with judgements by state and NAT alone",
        )
    else:
        yield ok("capabilities", f"all there: {', '.join(_WANTED)}")
    if not effective >> _NET_RAW & 1:
        yield note(
            "capabilities.net_raw",
            "CAP_NET_RAW is missing: legacy iptables does not work without it",
            "grant it if the rules belong into legacy tables",
        )


def evidence(best: Evidence, lack: str | None) -> Check:
    """The best evidence that could be opened; `lack` is why it is not a better one."""
    if best is Evidence.BPF:
        return ok("evidence", "the kernel's own window of a flow can be read (bpf)")
    what = lack or "the reason is not known"
    if best is Evidence.NONE:
        return problem("evidence", what, "give the guard what is missing")
    return warning("evidence", f"best evidence is {best}: {what}", "give the guard what is missing")
