# SPDX-License-Identifier: MIT
"""The best available source of flow windows, and the capabilities that it needs."""

from collections.abc import Iterator
from typing import Final

from nfq_guard.capabilities import BPF, NET_ADMIN, NET_RAW, PERFMON
from nfq_guard.doctor.check import Check, note, ok, problem, warning
from nfq_guard.flow import Evidence, EvidenceChoice

_WANTED: Final = {"CAP_NET_ADMIN": NET_ADMIN, "CAP_PERFMON": PERFMON, "CAP_BPF": BPF}


def capabilities(
    effective: int, *, refused: str | None = None, is_init_user_namespace: bool = True
) -> Iterator[Check]:
    """Capabilities of this process, which a daemon started from here would inherit.

    Args:
        effective: Bit mask of the effective set, by capability number.
        refused: Why CAP_NET_ADMIN does not count although it is in that set; None if it does.
        is_init_user_namespace: Whether this process is in the initial user namespace.
    """
    missing = [name for name, number in _WANTED.items() if not effective >> number & 1]
    if refused is not None and "CAP_NET_ADMIN" not in missing:
        yield problem(
            "capabilities",
            f"{refused}; neither the queue nor the rules can be set up",
            "run it in the user namespace of this network: for that of the host, as root of the "
            "host, outside a rootless container",
        )
    elif "CAP_NET_ADMIN" in missing:
        yield problem(
            "capabilities",
            f"missing: {', '.join(missing)}; neither the queue nor the rules can be set up",
            "run it as root, or grant the capabilities",
        )
    elif not is_init_user_namespace:
        yield ok(
            "capabilities",
            "CAP_NET_ADMIN is held; no other counts in a user namespace that is not the host's",
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


def evidence(
    best: Evidence, unavailable_reason: str | None, choice: EvidenceChoice, no_log: str | None
) -> Check:
    """The evidence that a daemon would have, and why no better one.

    Args:
        best: The best lookup that could be opened.
        unavailable_reason: Why no better lookup could be opened.
        choice: The setting `evidence`.
        no_log: Why the kernel's log cannot be used; None if it can.
    """
    if best is Evidence.BPF and choice in {"auto", "bpf"}:
        return ok("evidence", "the kernel's own window of a flow can be read (bpf)")
    what = unavailable_reason or "reason unknown"
    todo = "provide what is missing"
    if best is Evidence.NONE:
        return problem("evidence", what, todo)
    if choice == "ctnetlink":
        return note(
            "evidence", "state and translation of a flow, by the setting `evidence` (ctnetlink)"
        )
    if best is Evidence.BPF:
        what = "the setting `evidence` leaves the kernel's window out"
        todo = 'set evidence = "auto"'
    if choice == "bpf":
        return warning("evidence", f"best evidence is {best}: {what}", todo)
    if no_log is not None:
        return warning(
            "evidence",
            f"best evidence is ctnetlink: {what}; the kernel's log cannot be used either: {no_log}",
            todo,
        )
    return note(
        "evidence",
        f"the reason of a packet comes from the kernel's log (kernel-log): {what}",
        todo,
    )
