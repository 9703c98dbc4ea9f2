# SPDX-License-Identifier: MIT
"""Sets up the router's packet filter and conntrack for a mitigation, and reads their counters."""

import re
import subprocess
from pathlib import Path
from typing import Final

from nfq_guard.errors import UnavailableError
from nfq_guard.lab.addresses import Plan
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation

_INVALID: Final = "-m conntrack --ctstate INVALID"
_DROP_RULES: Final = {
    Mitigation.DROP_PREROUTING: ("mangle", "PREROUTING"),
    Mitigation.DROP_FORWARD: ("filter", "FORWARD"),
    Mitigation.DROP_INPUT: ("filter", "INPUT"),
}
_COUNTED_DROP: Final = re.compile(r"^\[(\d+):\d+\] -A \w+ .*INVALID -j DROP$", re.MULTILINE)


def rules(mitigation: Mitigation, nat: str) -> str:
    """The whole rule set for iptables-restore.

    It always contains a rule without a target in mangle PREROUTING, which keeps conntrack active
    in a network without translation. The rules must be loaded before the connection is opened:
    the first rule that uses conntrack makes it forget all windows (kernel.md 2).
    """
    tables = {"mangle": [f"-A PREROUTING {_INVALID}"]}
    if nat:
        tables["nat"] = nat.splitlines()
    if mitigation in _DROP_RULES:
        table, chain = _DROP_RULES[mitigation]
        tables.setdefault(table, []).append(f"-A {chain} {_INVALID} -j DROP")
    return "".join(f"*{table}\n{chr(10).join(lines)}\nCOMMIT\n" for table, lines in tables.items())


def install(router: Namespace, plan: Plan, mitigation: Mitigation, nat: str) -> None:
    """Set up the router's translation and the rules or sysctl of `mitigation`.

    Does not start the guard.

    Raises:
        UnavailableError: iptables is missing, or this kernel does not support a rule.
    """
    restore = f"{plan.iptables}-restore"
    try:
        router.run(restore, "-w", stdin=rules(mitigation, nat))
    except subprocess.CalledProcessError as error:
        message = error.stderr.strip().splitlines()[0] if error.stderr else "no error message"
        raise UnavailableError(f"{restore} in the lab: {message}") from None
    if mitigation is Mitigation.BE_LIBERAL:
        router.sysctl("netfilter.nf_conntrack_tcp_be_liberal", 1)


def dropped_by_rules(router: Namespace, plan: Plan, mitigation: Mitigation) -> int:
    """Packets dropped by the rule of `mitigation`."""
    if mitigation not in _DROP_RULES:
        return 0
    table, _ = _DROP_RULES[mitigation]
    saved = router.run(f"{plan.iptables}-save", "-c", "-t", table).stdout
    return sum(int(count) for count in _COUNTED_DROP.findall(saved))


def counted_invalid(router: Namespace) -> int:
    """Packets that conntrack called INVALID in this namespace, from its own statistics.

    ICMP errors have a column of their own.
    """
    with router.entered():
        path = Path("/proc/thread-self/net/stat/nf_conntrack")
        names, *cpus = path.read_text(encoding="ascii").splitlines()
    columns = [names.split().index(name) for name in ("invalid", "icmp_error")]
    return sum(int(line.split()[column], 16) for line in cpus for column in columns)
