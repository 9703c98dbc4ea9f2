# SPDX-License-Identifier: MIT
"""Chooses the best evidence that this host gives, and says in one line what a better one lacks."""

from collections.abc import Sequence
from typing import Final, final

from nfq_guard.errors import NfqGuardError
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.libbpf import LoadError
from nfq_guard.flows.unavailable import Host, why_not, without_capabilities


@final
class NoFlows:
    """Nothing can be looked up."""

    evidence: Final = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        """None for each."""
        return [None] * len(tuples)

    def close(self) -> None:
        """There is nothing to close."""


def open_flows(
    zones: Sequence[int] = (0,),
) -> tuple[BpfFlows | CtnetlinkFlows | NoFlows, str | None]:
    """The best lookup there is, and one line on why it is not a better one; None: it is the best.

    The caller closes it. Once open, no capability is needed to go on using it with BPF; ctnetlink
    asks for CAP_NET_ADMIN at each lookup.

    Args:
        zones: Conntrack zones to try for each tuple, in order; at least one.
    """
    try:
        netlink = CtnetlinkFlows(zones)
    except NfqGuardError as error:
        # BPF takes CAP_NET_ADMIN too; the line names all that is missing.
        lack = without_capabilities(Host.here()) or str(error)
        return NoFlows(), f"no flow can be looked up: {lack}"
    try:
        return BpfFlows(zones, others=netlink), None
    except LoadError as error:
        lack = why_not(error, Host.here())
    except (NfqGuardError, OSError) as error:
        lack = str(error)
    return netlink, f"the kernel's window cannot be read, only state and translation: {lack}"
