# SPDX-License-Identifier: MIT
"""The part of the diagnosis that concerns other programs' rules, for the daemon."""

from collections.abc import Iterator

from nfq_guard.doctor import fate, foreign, hidden, host_rules, synproxy
from nfq_guard.doctor.check import Check, Status
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.policy.decision import Policy
from nfq_guard.telemetry.events import HostAccepts, HostTakes

_TAKEN = frozenset({Status.WARNING, Status.PROBLEM})


def checks(policy: Policy) -> Iterator[Check]:
    """The doctor's checks `fate`, `foreign` and `policy`."""
    rules = host_rules.read()
    path, unnamed = rules.path(), rules.unnamed()
    yield from foreign.checks(path, unnamed=unnamed)
    yield from foreign.bridged(rules.bridged, handed_over=rules.handed_over)
    yield from fate.checks(path, unnamed=unnamed, complete=not rules.problems)
    if synproxy.used(rules.tables):
        yield from synproxy.checks(policy)
    yield from hidden.checks(path, policy)
    yield from foreign.unread(rules.problems)


def event(copy: LegacyCopy | None = None) -> HostAccepts | HostTakes:
    """The result of `checks` as an event; `copy` is as in `host_rules.read`."""
    rules = host_rules.read(copy)
    fates = [
        f"{check.id.removeprefix('fate.')}: {check.what}"
        for check in fate.checks(rules.path(), unnamed=rules.unnamed(), complete=not rules.problems)
        if check.status in _TAKEN
    ]
    unread = list(dict.fromkeys(rules.problems)) or None
    return HostTakes(fates=fates, unread=unread) if fates else HostAccepts(unread=unread)
