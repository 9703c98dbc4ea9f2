# SPDX-License-Identifier: MIT
"""Opens the best flow lookup of this host, with a line on why there is no better one."""

from collections.abc import Sequence
from typing import Final, final

from nfq_guard.errors import NfqGuardError
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.libbpf import LoadError
from nfq_guard.flows.unavailable import Host, missing_capabilities, unavailable_reason


@final
class NoFlows:
    """The lookup of a host that has none."""

    evidence: Final = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        """None for each tuple; `evidence` tells that it means nothing."""
        return [None] * len(tuples)

    def close(self) -> None:
        """Nothing is open."""


def open_flows(
    zones: Sequence[int] = (0,),
) -> tuple[BpfFlows | CtnetlinkFlows | NoFlows, str | None]:
    """The best lookup of this host, and one line on why there is no better one, else None.

    The caller closes it. Lookups through BPF need no capability once this has returned; ctnetlink
    needs CAP_NET_ADMIN for each lookup.

    Args:
        zones: Conntrack zones to try for each tuple, in order; at least one.
    """
    try:
        netlink = CtnetlinkFlows(zones)
    except NfqGuardError as error:
        # BPF needs CAP_NET_ADMIN too; the line names every missing capability.
        reason = missing_capabilities(Host.here()) or str(error)
        return NoFlows(), f"no flow can be looked up: {reason}"
    try:
        return BpfFlows(zones, others=netlink), None
    except LoadError as error:
        reason = unavailable_reason(error, Host.here())
    except (NfqGuardError, OSError) as error:
        reason = str(error)
    return netlink, f"the kernel's window cannot be read, only state and translation: {reason}"
