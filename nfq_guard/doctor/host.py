# SPDX-License-Identifier: MIT
"""The part of the diagnosis that concerns other programs' rules."""

from collections.abc import Container, Iterator

from nfq_guard.doctor import fate, foreign, hidden, host_rules, ipsets, routing, synproxy
from nfq_guard.doctor.check import Check, Status, ok
from nfq_guard.doctor.host_rules import HostRules
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.policy.decision import Policy
from nfq_guard.telemetry.events import HostAccepts, HostTakes

_TAKEN = frozenset({Status.WARNING, Status.PROBLEM})


def checks(rules: HostRules, policy: Policy | None) -> Iterator[Check]:
    """The doctor's checks `foreign`, `fate`, `routing` and `policy`.

    Args:
        rules: The rules of the host.
        policy: The policy; None if it has mistakes.
    """
    path, unnamed = rules.path(), rules.unnamed()
    named = [
        *foreign.checks(path, unnamed=unnamed),
        *foreign.bridged(rules.bridged, handed_over=rules.handed_over),
    ]
    yield from named
    if not named and not rules.problems:
        yield ok("foreign", "no other rules single out INVALID packets by their state")
    yield from fate.checks(path, unnamed=unnamed, complete=not rules.problems)
    yield from routing.checks(rules.tables)
    yield from foreign.unread(rules.problems)
    if policy is not None:
        if synproxy.used(rules.tables):
            yield from synproxy.checks(policy)
        yield from hidden.checks(path, policy, ipsets.read(hidden.sets_of_sources(path)))


def event(queues: Container[int], copy: LegacyCopy | None = None) -> HostAccepts | HostTakes:
    """The checks `fate` as an event; the arguments are as in `host_rules.read`."""
    rules = host_rules.read(copy, queues)
    fates = [
        f"{check.id.removeprefix('fate.')}: {check.what}"
        for check in fate.checks(rules.path(), unnamed=rules.unnamed(), complete=not rules.problems)
        if check.status in _TAKEN
    ]
    unread = list(dict.fromkeys(rules.problems)) or None
    return HostTakes(fates=fates, unread=unread) if fates else HostAccepts(unread=unread)
