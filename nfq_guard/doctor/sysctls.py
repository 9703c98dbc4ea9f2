# SPDX-License-Identifier: MIT
"""The sysctls that decide which packets are INVALID."""

from collections.abc import Iterator, Mapping
from typing import Final

from nfq_guard.doctor.check import Check, note, ok, problem, warning

_CONNTRACK: Final = "netfilter.nf_conntrack_"
BE_LIBERAL: Final = (
    f"{_CONNTRACK}tcp_be_liberal",
    "ipv4.netfilter.ip_conntrack_tcp_be_liberal",
    f"{_CONNTRACK}tcp_no_window_check",  # OpenWrt
)
_LOGGERS: Final = {"2": "IPv4", "10": "IPv6"}

KEYS: Final = (
    *BE_LIBERAL,
    f"{_CONNTRACK}tcp_loose",
    f"{_CONNTRACK}checksum",
    f"{_CONNTRACK}log_invalid",
    f"{_CONNTRACK}tcp_ignore_invalid_rst",
    "netfilter.nf_log_all_netns",
    *(f"netfilter.nf_log.{number}" for number in _LOGGERS),
)
"""The sysctls to read, without their prefix `net.`; a kernel may lack some."""


def sysctls(
    values: Mapping[str, str], *, synproxy: bool = False, logs_for: str | None = None
) -> Iterator[Check]:
    """One check for each sysctl that matters.

    Args:
        values: Values by key of `KEYS`; absent where the kernel lacks the sysctl.
        synproxy: Whether a rule of the host uses SYNPROXY.
        logs_for: The daemon for which the kernel logs INVALID packets; None without one.
    """
    yield _be_liberal(values)
    yield from _loose(values, synproxy=synproxy)
    yield from _checksum(values)
    if logs_for is None:
        yield from _logging(values)
    else:
        yield ok("sysctl.log_invalid", f"the kernel logs INVALID packets to the daemon {logs_for}")
    if values.get(f"{_CONNTRACK}tcp_ignore_invalid_rst", "0") != "0":
        yield note(
            "sysctl.ignore_invalid_rst",
            "tcp_ignore_invalid_rst=1: an RST below what was acknowledged already is not INVALID; "
            "rst-outside does not occur",
            "set it to 0 if the guard is to judge such RSTs",
        )
    if values.get("netfilter.nf_log_all_netns", "0") != "0":
        yield note(
            "sysctl.log_all_netns",
            "nf_log_all_netns=1: every namespace may log its INVALID packets to the kernel log",
        )


def _be_liberal(values: Mapping[str, str]) -> Check:
    there = {key: values[key] for key in BE_LIBERAL if key in values}
    if not there.keys() - {BE_LIBERAL[-1]}:
        return problem(
            "sysctl.be_liberal",
            "connection tracking is not loaded: nf_conntrack_tcp_be_liberal does not exist",
            "load nf_conntrack; any rule with ctstate loads it, in this namespace",
        )
    on = [key for key, value in there.items() if value != "0"]
    if not on:
        return ok("sysctl.be_liberal", "segments are checked against the window (be_liberal=0)")
    return warning(
        "sysctl.be_liberal",
        f"{on[0].rpartition('.')[2]}=1: segments outside the window are not INVALID; seq-over and "
        "ack-over never reach the guard",
        f"set net.{on[0]}=0; the guard heals single flows whose window conntrack has lost",
    )


def _loose(values: Mapping[str, str], *, synproxy: bool) -> Iterator[Check]:
    value = values.get(f"{_CONNTRACK}tcp_loose")
    if synproxy and value is not None:
        what = f"tcp_loose={value}: SYNPROXY needs 0, so that it sees the ACK of each handshake"
        yield (
            note("sysctl.loose", what)
            if value == "0"
            else warning("sysctl.loose", what, f"set net.{_CONNTRACK}tcp_loose=0")
        )
    elif value == "0":
        yield note(
            "sysctl.loose",
            "tcp_loose=0: every packet of a flow whose start was not seen is INVALID (no-entry)",
            "expect many after a reboot or a failover; set it to 1 to pick up established flows",
        )
    elif value is not None:
        yield ok("sysctl.loose", f"established flows are picked up (tcp_loose={value})")


def _checksum(values: Mapping[str, str]) -> Iterator[Check]:
    value = values.get(f"{_CONNTRACK}checksum")
    if value == "0":
        yield note(
            "sysctl.checksum",
            "nf_conntrack_checksum=0: packets with a wrong checksum are not INVALID",
            "set it to 1 if the guard is to see bad-checksum",
        )
    elif value is not None:
        yield ok("sysctl.checksum", "checksums are verified")


def _logging(values: Mapping[str, str]) -> Iterator[Check]:
    value = values.get(f"{_CONNTRACK}log_invalid")
    if value is None:
        return
    if value == "0":
        yield ok("sysctl.log_invalid", "the kernel does not log INVALID packets")
        return
    loggers = {
        name: values.get(f"netfilter.nf_log.{number}", "NONE") for number, name in _LOGGERS.items()
    }
    where = ", ".join(f"{name} to {logger}" for name, logger in loggers.items())
    if "nf_log_syslog" in loggers.values() or "nf_log_ipv4" in loggers.values():
        todo = "set it to 0 unless you read the kernel log: a flood of INVALID packets fills it"
    else:
        todo = "set it to 0 unless something reads NFLOG group 0"
    protocol = {"6": "TCP", "255": "all"}.get(value, f"protocol {value}")
    yield note("sysctl.log_invalid", f"the kernel logs INVALID packets ({protocol}): {where}", todo)


def reverse_path(filters: Mapping[str, str]) -> Iterator[Check]:
    """Strict reverse path filtering, which drops packets of asymmetric routes.

    Args:
        filters: `rp_filter` by interface, including `all`; the greater of the two applies.
    """
    everywhere = int(filters.get("all", "0"))
    strict = [
        name
        for name, value in filters.items()
        if name not in {"all", "default", "lo"} and max(everywhere, int(value)) == 1
    ]
    if strict:
        names = ", ".join(sorted(strict)[:4]) + (" and more" if len(strict) > 4 else "")
        yield note(
            "sysctl.rp_filter",
            f"rp_filter=1 on {names}: packets of asymmetric routes are dropped after the guard "
            "has accepted them",
            "set it to 2 where routes are asymmetric",
        )
    elif filters:
        yield ok("sysctl.rp_filter", "no strict reverse path filtering")
