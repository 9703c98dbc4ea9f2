# SPDX-License-Identifier: MIT
"""Runs all checks of the doctor, in the order in which they are printed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nfq_guard import capabilities
from nfq_guard.doctor import (
    before_conntrack,
    beside_rules,
    collect,
    evidence,
    host,
    host_rules,
    interfaces,
    kernel,
    marks,
    modules,
    nft_rules,
    ours,
    queue,
    synproxy,
    sysctls,
    table,
    tracking,
)
from nfq_guard.doctor.check import Check, note
from nfq_guard.doctor.host_rules import HostRules
from nfq_guard.errors import NfqGuardError
from nfq_guard.firewall import Backend, Difference, FailMode, Firewall, Native
from nfq_guard.firewall.saved import Saved
from nfq_guard.flow import EvidenceChoice
from nfq_guard.flows import log_settings
from nfq_guard.flows.open import open_lookup
from nfq_guard.flows.source import ONE_QUEUE
from nfq_guard.netlink.owner import is_guard, process_of
from nfq_guard.nfqueue import counters
from nfq_guard.policy.decision import Policy
from nfq_guard.probe.live import ask
from nfq_guard.probe.recognise import Recognised, recognise

_CONNTRACK: Final = collect.SYSCTLS / "netfilter"


def examine(
    firewall: Firewall,
    policy: Policy | None = None,
    choice: EvidenceChoice = "auto",
    *,
    by_others: bool = False,
) -> Iterator[Check]:
    """Run every check.

    Args:
        firewall: Our rules as configured.
        choice: The setting `evidence`.
        policy: The policy as configured; None if it has mistakes.
        by_others: Whether our rules are left to others (`rules = "none"`).
    """
    rules = host_rules.read(queues=_queue_numbers(firewall))
    files = modules.KernelFiles.read(Path("/"), os.uname().release)
    yield from _kernel(files, native=firewall.asked is Native.NFTABLES)
    yield from _evidence(
        files, choice, queues=firewall.spec.last_queue - firewall.spec.first_queue + 1
    )
    yield from sysctls.sysctls(
        collect.sysctl_values(),
        synproxy=synproxy.used(rules.tables),
        logs_for=log_settings.logs_for(),
    )
    yield from sysctls.reverse_path(collect.reverse_path_filters())
    yield from _table()
    yield from _rules(firewall, rules, by_others=by_others)
    yield from host.checks(rules, policy)
    yield from beside_rules.checks(beside_rules.read())
    yield from _queues(firewall)
    yield from _interfaces()


def _kernel(files: modules.KernelFiles, *, native: bool) -> Iterator[Check]:
    release = os.uname().release
    found = _ask_kernel()
    yield kernel.rules(release, found)
    yield kernel.reasons(release, found)
    yield from modules.features(files, native=native)
    present = (collect.NET / "netfilter" / "nfnetlink_queue").exists()
    yield modules.queues(files, present=present)
    yield kernel.type_information(available=Path("/sys/kernel/btf/vmlinux").exists())


def _ask_kernel() -> Recognised | str:
    """The result of the probe of the kernel's rules, or why no probe was possible."""
    try:
        return recognise(ask())
    except NfqGuardError as error:
        return str(error)


def _evidence(
    files: modules.KernelFiles, choice: EvidenceChoice, *, queues: int
) -> Iterator[Check]:
    yield from evidence.capabilities(
        capabilities.effective(),
        refused=capabilities.no_net_admin(),
        is_init_user_namespace=capabilities.is_init_user_namespace(),
    )
    flows, why = open_lookup()
    try:
        yield evidence.evidence(flows.evidence, why, choice, _no_log(files, queues))
    finally:
        flows.close()


def _no_log(files: modules.KernelFiles, queues: int) -> str | None:
    """Why the kernel's log cannot be used as evidence; None if it can."""
    if queues > 1:
        return ONE_QUEUE
    missing = files.unavailable(modules.KERNEL_LOG)
    return log_settings.unfit() if missing is None else missing[0]


def _table() -> Iterator[Check]:
    count = collect.number(_CONNTRACK / "nf_conntrack_count")
    maximum = collect.number(_CONNTRACK / "nf_conntrack_max")
    if count is not None and maximum is not None:
        yield table.fill(count, maximum)
    ipvs = beside_rules.services(collect.text(collect.NET / "ip_vs")) > 0
    sums = table.parse_counters(collect.text(collect.NET / "stat/nf_conntrack"))
    yield from table.counters(sums, ipvs=ipvs)


def _rules(firewall: Firewall, rules: HostRules, *, by_others: bool) -> Iterator[Check]:
    problems = rules.problems
    holders = [
        str(backend)
        for backend in Backend
        if any(
            _holds_ours(tables) for (which, _), tables in rules.saved.items() if which is backend
        )
    ]
    early = before_conntrack.read(_queue_numbers(firewall))
    stateless = list(tracking.stateless(rules.path()))
    yield from before_conntrack.checks(early, translated=bool(stateless))
    yield from tracking.checks(
        rules, firewall.families, collect.tracked_flows(), collect.forwarded()
    )
    yield from stateless
    native = rules.native
    places = [*holders, *(["nftables"] if native is not None and native.ours else [])]
    differences: list[Difference] = []
    try:
        differences = firewall.verify() if places else []
    except NfqGuardError as error:
        problems.append(str(error))
    yield ours.ours(
        places,
        differences,
        complete=not problems,
        others=rules.to_us,
        by_others=by_others,
        dormant=host_rules.dormant_ours(rules),
    )
    yield from ours.valid_packets(rules.to_us)
    yield from _order(firewall) if holders else ()
    if firewall.spec.fail_mode is FailMode.KERNEL_DROP:
        place = firewall.described_choice().backend
        yield from marks.marks(rules.path(), firewall.spec, place)
    if native is not None:
        yield from nft_rules.flowtables(native.flowtables)
    yield from interfaces.vrfs(collect.vrf_names())
    problems += (problem for problem in early.problems if problem not in problems)


def _queue_numbers(firewall: Firewall) -> range:
    return range(firewall.spec.first_queue, firewall.spec.last_queue + 1)


def _order(firewall: Firewall) -> Iterator[Check]:
    try:
        yield from ours.remarks(firewall.remarks())
    except NfqGuardError:
        return  # `rules.ours` reports it


def _holds_ours(saved: Saved) -> bool:
    return any(table.own_chains() or table.own_jumps() for table in saved.values())


def _queues(firewall: Firewall) -> Iterator[Check]:
    if counters.QUEUES.exists() and not os.access(counters.QUEUES, os.R_OK):
        yield note("queue.owner", "cannot read the owner of the queue", "run it as root")
        return
    for number in _queue_numbers(firewall):
        state = counters.owner(number)
        owner = process_of(state.port_id) if state is not None else ""
        yield from queue.queue(number, state, owner, ours=is_guard(owner))


def _interfaces() -> Iterator[Check]:
    physical = collect.physical_interfaces()
    if not physical:
        yield note(
            "receive.irq",
            "no interface of this namespace is backed by a device",
            "check offloads and the distribution of receive work in the host's own namespace",
        )
    forwarding = collect.forwards()
    interrupts = interfaces.parse_interrupts(collect.text(Path("/proc/interrupts")))
    softnet = interfaces.parse_softnet(collect.text(collect.NET / "softnet_stat"))
    strained = interfaces.overloaded(softnet)
    without_ethtool = False
    for interface in physical:
        features = collect.output("ethtool", "-k", interface.name)
        if features is None:
            without_ethtool = True
        else:
            parsed = interfaces.parse_features(features)
            yield interfaces.offloads(interface.name, parsed, forwarding=forwarding)
        yield from interfaces.spread(interface, interrupts, strained=strained)
    if without_ethtool:
        yield note(
            "offload.interface",
            "offloads cannot be read: ethtool is missing or fails",
            "install the Debian package ethtool",
        )
    backlog = interfaces.backlog(softnet)
    if backlog is not None:
        yield backlog
