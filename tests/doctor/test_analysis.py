# SPDX-License-Identifier: MIT
"""The doctor's findings from the kernel's texts and numbers."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from nfq_guard.conntrack.kernel_rules import KERNEL_5_15
from nfq_guard.doctor import evidence, interfaces, kernel, queue, sysctls, table
from nfq_guard.doctor.check import Check, Status
from nfq_guard.doctor.ours import ours
from nfq_guard.firewall import Backend, Difference, Family, Kind
from nfq_guard.flow import Evidence, EvidenceChoice
from nfq_guard.netlink.owner import runs_guard
from nfq_guard.nfqueue.counters import QueueCounters
from nfq_guard.probe.recognise import LIVE, Recognised

ALL_CAPS = (1 << 41) - 1


def by_id(checks: Iterable[Check]) -> dict[str, Check]:
    return {one.id: one for one in checks}


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.18.44-cloud", Status.OK),
        ("6.1.0", Status.OK),
        ("5.15.0-91-generic", Status.NOTE),
        ("4.19", Status.NOTE),
        ("unknown", Status.NOTE),
    ],
)
def test_older_kernels_call_more_invalid(release: str, status: Status) -> None:
    check = kernel.reasons(release, "not asked")
    assert check.status is status
    assert (status is Status.OK) == ("do not occur" in check.what)


def test_the_rules_that_the_kernel_was_asked_for() -> None:
    """The results of the probe count, not the release."""
    known = Recognised(KERNEL_5_15, KERNEL_5_15, (), ())
    assert kernel.rules("5.15.132", known).status is Status.OK
    check = kernel.rules("6.1.0-18-amd64", known)
    assert check.status is Status.NOTE
    assert "the rules of 5.15; its release 6.1.0-18-amd64 suggests those of 6.1" in check.what
    assert "--kernel 5.15" in check.todo
    assert "suggests" not in kernel.rules("unknown", known).what
    assert "are INVALID too" in kernel.reasons("6.1.0-18-amd64", known).what


def test_a_kernel_that_could_not_be_asked() -> None:
    check = kernel.rules("5.14.0-427.el9", "asking takes root")
    assert check.status is Status.NOTE
    assert "suggests the rules of 5.14; not confirmed: asking takes root" in check.what
    assert "no known generation" in kernel.rules("unknown", "asking takes root").what


def test_a_kernel_of_no_known_generation() -> None:
    mixed = replace(KERNEL_5_15, name=LIVE, closing_takes_any_rst=False)
    check = kernel.rules("5.15.132", Recognised(mixed, KERNEL_5_15, ("one thing", "another"), ()))
    assert check.status is Status.WARNING
    assert "the nearest is 5.15, but it differs in" in check.what
    assert "one thing, another" in check.what
    assert "--kernel live" in check.todo
    assert "this very kernel" in kernel.reasons("5.15.132", Recognised(mixed, mixed, (), ())).what


def test_type_information_is_no_condition() -> None:
    assert kernel.type_information(available=False).status is Status.NOTE
    assert kernel.type_information(available=True).status is Status.OK


@pytest.mark.parametrize(
    ("mask", "status"),
    [(ALL_CAPS, Status.OK), (1 << 12 | 1 << 13, Status.WARNING), (1 << 13, Status.PROBLEM)],
)
def test_capabilities(mask: int, status: Status) -> None:
    checks = by_id(evidence.capabilities(mask))
    assert checks["capabilities"].status is status
    assert "capabilities.net_raw" not in checks


def test_no_capability_is_asked_for_that_does_not_count() -> None:
    """BPF takes those of the host's user namespace alone, which no rootless container has."""
    (found,) = evidence.capabilities(1 << 12 | 1 << 13, is_init_user_namespace=False)
    assert found.status is Status.OK
    assert "no other counts" in found.what


def test_capabilities_for_another_network_do_not_count() -> None:
    (found,) = evidence.capabilities(
        ALL_CAPS, refused="CAP_NET_ADMIN does not count here", is_init_user_namespace=False
    )
    assert found.status is Status.PROBLEM
    assert found.what.startswith("CAP_NET_ADMIN does not count here; neither the queue")
    assert "user namespace" in found.todo


@pytest.mark.parametrize(
    ("best", "choice", "no_log", "status", "words"),
    [
        (Evidence.BPF, "auto", None, Status.OK, "(bpf)"),
        (Evidence.BPF, "bpf", "ulogd", Status.OK, "(bpf)"),
        (Evidence.CTNETLINK, "auto", None, Status.NOTE, "(kernel-log): CAP_BPF is missing"),
        (
            Evidence.CTNETLINK,
            "auto",
            "ulogd",
            Status.WARNING,
            "CAP_BPF is missing; the kernel's log",
        ),
        (Evidence.CTNETLINK, "bpf", None, Status.WARNING, "is ctnetlink: CAP_BPF is missing"),
        (Evidence.CTNETLINK, "ctnetlink", None, Status.NOTE, "by the setting"),
        (Evidence.BPF, "ctnetlink", None, Status.NOTE, "by the setting"),
        (Evidence.BPF, "kernel-log", None, Status.NOTE, "(kernel-log): the setting"),
        (Evidence.BPF, "kernel-log", "ulogd", Status.WARNING, "cannot be used either: ulogd"),
        (Evidence.NONE, "auto", None, Status.PROBLEM, "CAP_BPF is missing"),
    ],
)
def test_evidence(
    best: Evidence, choice: EvidenceChoice, no_log: str | None, status: Status, words: str
) -> None:
    found = evidence.evidence(best, "CAP_BPF is missing", choice, no_log)
    assert found.status is status
    assert words in found.what


def test_no_capability() -> None:
    assert "capabilities.net_raw" in by_id(evidence.capabilities(0))


PLAIN = {
    "netfilter.nf_conntrack_tcp_be_liberal": "0",
    "netfilter.nf_conntrack_tcp_loose": "1",
    "netfilter.nf_conntrack_checksum": "1",
    "netfilter.nf_conntrack_log_invalid": "0",
    "netfilter.nf_conntrack_tcp_ignore_invalid_rst": "0",
    "netfilter.nf_log_all_netns": "0",
}


def test_the_kernels_default_settings_are_ok() -> None:
    assert {one.status for one in sysctls.sysctls(PLAIN)} == {Status.OK}


@pytest.mark.parametrize(
    ("key", "value", "name", "status"),
    [
        ("netfilter.nf_conntrack_tcp_be_liberal", "1", "be_liberal", Status.WARNING),
        ("ipv4.netfilter.ip_conntrack_tcp_be_liberal", "1", "be_liberal", Status.WARNING),
        ("netfilter.nf_conntrack_tcp_no_window_check", "1", "be_liberal", Status.WARNING),
        ("netfilter.nf_conntrack_tcp_no_window_check", "0", "be_liberal", Status.OK),
        ("netfilter.nf_conntrack_tcp_loose", "0", "loose", Status.NOTE),
        ("netfilter.nf_conntrack_checksum", "0", "checksum", Status.NOTE),
        ("netfilter.nf_conntrack_log_invalid", "255", "log_invalid", Status.NOTE),
        ("netfilter.nf_conntrack_tcp_ignore_invalid_rst", "1", "ignore_invalid_rst", Status.NOTE),
        ("netfilter.nf_log_all_netns", "1", "log_all_netns", Status.NOTE),
    ],
)
def test_each_setting_that_matters(key: str, value: str, name: str, status: Status) -> None:
    assert by_id(sysctls.sysctls(PLAIN | {key: value}))[f"sysctl.{name}"].status is status


def test_only_an_rst_below_is_ignored() -> None:
    """One above the window stays INVALID: `tests/conntrack/test_closing.py`."""
    key = "netfilter.nf_conntrack_tcp_ignore_invalid_rst"
    check = by_id(sysctls.sysctls(PLAIN | {key: "1"}))["sysctl.ignore_invalid_rst"]
    assert "an RST below what was acknowledged already is not INVALID" in check.what


def test_the_advice_on_be_liberal_is_the_sysctl_that_is_set() -> None:
    key = "ipv4.netfilter.ip_conntrack_tcp_be_liberal"
    check = by_id(sysctls.sysctls(PLAIN | {key: "1"}))["sysctl.be_liberal"]
    assert check.todo.startswith(f"set net.{key}=0; ")


def test_synproxy_needs_tcp_loose_off() -> None:
    key = "netfilter.nf_conntrack_tcp_loose"
    right = by_id(sysctls.sysctls(PLAIN | {key: "0"}, synproxy=True))["sysctl.loose"]
    assert (right.status, right.todo) == (Status.NOTE, "")
    wrong = by_id(sysctls.sysctls(PLAIN | {key: "1"}, synproxy=True))["sysctl.loose"]
    assert (wrong.status, wrong.todo) == (Status.WARNING, f"set net.{key}=0")


def test_missing_conntrack_is_a_problem() -> None:
    assert by_id(sysctls.sysctls({}))["sysctl.be_liberal"].status is Status.PROBLEM


def test_the_destination_of_the_kernels_log() -> None:
    values = PLAIN | {
        "netfilter.nf_conntrack_log_invalid": "6",
        "netfilter.nf_log.2": "nf_log_syslog",
    }
    check = by_id(sysctls.sysctls(values))["sysctl.log_invalid"]
    assert "TCP" in check.what
    assert "IPv4 to nf_log_syslog, IPv6 to NONE" in check.what
    assert "kernel log" in check.todo


def test_the_log_of_the_daemon_is_not_to_be_turned_off() -> None:
    values = PLAIN | {"netfilter.nf_conntrack_log_invalid": "255"}
    check = by_id(sysctls.sysctls(values, logs_for="nfq-guard"))["sysctl.log_invalid"]
    assert (check.status, check.todo) == (Status.OK, "")


@pytest.mark.parametrize(
    ("filters", "strict"),
    [
        ({"all": "0", "eth0": "1"}, ["eth0"]),
        ({"all": "1", "eth0": "0", "default": "1", "lo": "0"}, ["eth0"]),
        ({"all": "2", "eth0": "1"}, []),
        ({"all": "0", "eth0": "2"}, []),
    ],
)
def test_the_greater_reverse_path_filter_applies(
    filters: dict[str, str], strict: list[str]
) -> None:
    (check,) = sysctls.reverse_path(filters)
    assert check.status is (Status.NOTE if strict else Status.OK)
    assert all(name in check.what for name in strict)
    assert list(sysctls.reverse_path({})) == []


@pytest.mark.parametrize(
    ("count", "status"),
    [(0, Status.OK), (799, Status.OK), (800, Status.WARNING), (950, Status.PROBLEM)],
)
def test_a_full_table(count: int, status: Status) -> None:
    assert table.fill(count, 1000).status is status


def test_a_table_without_a_limit() -> None:
    check = table.fill(5, 0)
    assert check.status is Status.OK
    assert check.what == "5 connections, without a limit (nf_conntrack_max=0)"


def test_counters_are_hexadecimal_and_summed_over_cpus() -> None:
    text = (
        "entries  clashres found new invalid insert_failed drop early_drop icmp_error\n"
        "00000010 00000000 00000000 00000000 0000000a 00000001 00000000 00000000 00000001\n"
        "00000010 00000000 00000000 00000000 00000010 00000000 00000000 00000002 00000002\n"
    )
    sums = table.parse_counters(text)
    assert sums["invalid"] == 26
    assert "entries" not in sums
    checks = by_id(table.counters(sums))
    assert "2 connections evicted" in checks["table.drops"].what
    assert "29 INVALID packets" in checks["table.invalid"].what
    assert table.parse_counters("") == {}
    assert list(table.counters({})) == []


@pytest.mark.parametrize(
    ("sums", "full", "raced"),
    [
        ({"invalid": 0}, Status.OK, None),
        # A packet that loses the race to insert counts in both columns.
        ({"drop": 1, "insert_failed": 1}, Status.OK, Status.WARNING),
        ({"drop": 3}, Status.WARNING, None),
        ({"drop": 3, "insert_failed": 1}, Status.WARNING, Status.WARNING),
        ({"insert_failed": 2}, Status.OK, Status.WARNING),
        ({"early_drop": 1}, Status.WARNING, None),
    ],
)
def test_a_full_table_and_lost_races_are_told_apart(
    sums: dict[str, int], full: Status, raced: Status | None
) -> None:
    checks = by_id(table.counters(sums))
    assert checks["table.drops"].status is full
    found = checks.get("table.insert_failed")
    assert (None if found is None else found.status) is raced
    if found is not None:
        assert "--random-fully" in found.todo


@pytest.mark.parametrize(
    ("sums", "full", "raced"),
    [
        ({"chainlength": 5, "insert_failed": 5}, Status.OK, None),
        ({"chainlength": 5, "insert_failed": 5, "drop": 3}, Status.WARNING, None),
        ({"chainlength": 5, "insert_failed": 7, "drop": 2}, Status.OK, Status.WARNING),
    ],
)
def test_long_chains_are_no_lost_races_and_hide_no_full_table(
    sums: dict[str, int], full: Status, raced: Status | None
) -> None:
    """Both causes count in `insert_failed`, but `drop` counts the lost races alone."""
    checks = by_id(table.counters(sums))
    chains = checks["table.chains"]
    assert chains.status is Status.WARNING
    assert chains.what.startswith("5 packets of new flows dropped")
    assert "nf_conntrack_buckets" in chains.todo
    assert checks["table.drops"].status is full
    found = checks.get("table.insert_failed")
    assert (None if found is None else found.status) is raced
    if found is not None:
        assert found.what.startswith("2 packets")


def test_invalid_icmp_counts_in_its_own_column() -> None:
    check = by_id(table.counters({"invalid": 0, "icmp_error": 5}))["table.invalid"]
    assert check.status is Status.NOTE
    assert "5 INVALID packets" in check.what
    assert by_id(table.counters({"drop": 0}))["table.invalid"].status is Status.OK


def _counters(full: int = 0, buffer: int = 0) -> QueueCounters:
    return QueueCounters(
        port_id=711, waiting=0, copy_bytes=256, queue_dropped=full, user_dropped=buffer, last_id=9
    )


def test_the_owner_of_the_queue() -> None:
    def status(owner: str, *, ours: bool = False) -> Status:
        return next(iter(queue.queue(0, _counters(), owner, ours=ours))).status

    assert status("suricata (pid 711)") is Status.PROBLEM
    assert status("nfq-guard (pid 711)", ours=True) is Status.OK
    assert status("unknown process") is Status.NOTE
    assert status("systemd (pid 1)") is Status.NOTE
    assert next(iter(queue.queue(0, None, "", ours=False))).status is Status.NOTE


def test_drops_of_the_queue() -> None:
    checks = by_id(queue.queue(0, _counters(3, 4), "python3 (pid 1)", ours=True))
    assert checks["queue.drops"].status is Status.WARNING
    assert "3 packets" in checks["queue.drops"].what


FEATURES = """\
Features for eth0:
rx-checksumming: on [fixed]
	tx-checksum-ipv4: off [fixed]
tcp-segmentation-offload: on
generic-receive-offload: on
large-receive-offload: off [fixed]
"""


def test_offloads() -> None:
    features = interfaces.parse_features(FEATURES)
    check = interfaces.offloads("eth0", features, forwarding=True)
    assert check.status is Status.OK
    assert "LRO off, GRO on, TSO on" in check.what
    features["large-receive-offload"] = True
    assert interfaces.offloads("eth0", features, forwarding=False).status is Status.OK
    assert interfaces.offloads("eth0", features, forwarding=True).status is Status.WARNING


def test_vrfs() -> None:
    (check,) = interfaces.vrfs(["red", "blue"])
    assert (check.id, check.status) == ("tracking.vrf", Status.NOTE)
    assert "a VRF (red, blue)" in check.what
    assert list(interfaces.vrfs([])) == []


INTERRUPTS = """\
           CPU0       CPU1
 24:          1          0  IO-APIC   5-edge      ACPI:Ged
 38:         10      99000 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
 39:     500000          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0
 40:       6000       6000 PCI-MSIX   3-edge      eth1-TxRx-0
NMI:          0          0   Non-maskable interrupts
"""


def _spread(*irqs: str, rps: bool = False, strained: bool = False) -> Check:
    one = interfaces.Interface(name="eth0", rps=[rps], rfs=[0], irqs=frozenset(irqs))
    counts = interfaces.parse_interrupts(INTERRUPTS)
    (check,) = interfaces.spread(one, counts, strained=strained)
    return check


def test_receive_work_on_one_cpu() -> None:
    """Transmit queues do not count, whether matched by number or by name."""
    for irqs in (("38", "39"), ("virtio2",)):
        assert _spread(*irqs).status is Status.NOTE
        assert "CPU 1 took 100% of 99010" in _spread(*irqs).what
        overloaded = _spread(*irqs, strained=True)
        assert overloaded.status is Status.WARNING
        assert "late packets from an overloaded receiver" in overloaded.todo
    assert _spread("38", rps=True, strained=True).status is Status.OK
    assert _spread("eth1", strained=True).status is Status.OK
    assert "cannot read its interrupts" in _spread("eth7").what


def test_receive_work_on_a_single_cpu_host_is_ok() -> None:
    counts = interfaces.parse_interrupts("   CPU0\n 5: 99999 edge eth0\n")
    one = interfaces.Interface(name="eth0", rps=[], rfs=[], irqs=frozenset({"eth0"}))
    (check,) = interfaces.spread(one, counts, strained=True)
    assert check.status is Status.OK


def test_lost_entries_of_a_host_with_ipvs() -> None:
    """An INVALID packet to a service is NEW behind IPVS, and its entry clashes (kernel.md 2)."""
    sums = {"drop": 2, "insert_failed": 2}
    plain, with_ipvs = (
        next(each for each in table.counters(sums, ipvs=ipvs) if each.id == "table.insert_failed")
        for ipvs in (False, True)
    )
    assert with_ipvs.what == f"{plain.what}; with IPVS, INVALID packets to its services as well"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("00010000 00000000 00000001 0\n", Status.OK),
        ("00010000 00000002 00000000 0\n", Status.WARNING),
        ("00001000 00000000 00000100 0\n", Status.WARNING),
    ],
)
def test_the_backlog(text: str, status: Status) -> None:
    check = interfaces.backlog(interfaces.parse_softnet(text))
    assert check is not None
    assert check.status is status
    assert interfaces.backlog([]) is None


def test_our_own_rules() -> None:
    def difference(kind: Kind) -> Difference:
        return Difference(
            kind=kind,
            family=Family.IPV4,
            backend=Backend.NFT,
            table="mangle",
            chain="OUTPUT",
            detail="it is not there",
        )

    assert ours([], []).status is Status.NOTE
    assert ours(["nft"], []).status is Status.OK
    assert ours(["nftables"], []).status is Status.OK
    assert ours(["legacy", "nft"], []).status is Status.PROBLEM
    assert ours(["nft"], [difference(Kind.MISSING_JUMP)]).status is Status.PROBLEM
    changed = ours(["nft"], [difference(Kind.CHANGED_RULE)])
    assert changed.status is Status.WARNING
    assert changed.what.startswith("1 difference in our rules, such as ")


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("/usr/bin/python3 /usr/bin/nfq-guard run", True),
        ("/usr/sbin/nfq-guard run", True),
        # As the launcher of the Debian package.
        ("/usr/bin/python3 -I /usr/sbin/nfq-guard run", True),
        ("tail -f nfq-guard", False),
        ("python3 -m nfq_guard run", True),
        ("python3 /src/nfq_guard/.venv/bin/pytest", False),
        ("suricata -q 0", False),
        ("", False),
    ],
)
def test_a_guard_is_recognised_by_its_command_line(line: str, ours: bool) -> None:
    assert runs_guard(line.split()) is ours
