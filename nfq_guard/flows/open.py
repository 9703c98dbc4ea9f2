# SPDX-License-Identifier: MIT
"""Opens the best flow lookup of this host, with a line on what is missing or refused."""

from collections.abc import Sequence
from typing import Final, TypeAlias, final

from nfq_guard import capabilities
from nfq_guard.errors import NfqGuardError
from nfq_guard.flow import Evidence, FlowSnapshot, FlowTuple
from nfq_guard.flows import bpf, pins
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.libbpf import LoadError, Program
from nfq_guard.flows.unavailable import Host, missing_capabilities, unavailable_reason


@final
class NoFlows:
    """The lookup of a host without one."""

    evidence: Final = Evidence.NONE

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[FlowSnapshot | None]:
        """None for each tuple; that proves nothing, because `evidence` is NONE."""
        return [None] * len(tuples)

    def close(self) -> None:
        """Nothing is open."""


Lookup: TypeAlias = BpfFlows | CtnetlinkFlows | NoFlows


def load_ahead(count: int) -> list[Program] | str:
    """Load `count` programs in advance, for `open_lookup` after privileges have been given up.

    Returns:
        The programs, to be closed by the caller; or why none can be loaded.
    """
    loaded: list[Program] = []
    try:
        # Loads conntrack's modules; without them the kernel has no lookup function.
        CtnetlinkFlows((0,)).close()
        while len(loaded) < count:
            loaded.append(bpf.load())
    except LoadError as error:
        why = unavailable_reason(error, Host.here())
    except (NfqGuardError, OSError) as error:
        why = str(error)
    else:
        return loaded
    for program in loaded:
        program.close()
    return why


def open_lookup(
    zones: Sequence[int] = (0,),
    instance: str | None = None,
    ahead: Program | str | None = None,
) -> tuple[Lookup, str | None]:
    """The best lookup of this host, and why there is no better one or what was refused, else None.

    BPF has precedence, with a program that root has pinned for this daemon, or else one that this
    process loads. The caller closes the lookup. Lookups through BPF need no capability once this
    has returned; ctnetlink needs CAP_NET_ADMIN for each lookup.

    Args:
        zones: Conntrack zones to try for each tuple, in order; at least one.
        instance: The daemon whose pins to use (`pins.instance_of`); None: no pins.
        ahead: A program of `load_ahead`, preferred and closed with the lookup, or why there is
            none; None if that was not tried.
    """
    try:
        netlink = CtnetlinkFlows(zones)
    except NfqGuardError as error:
        # BPF needs CAP_NET_ADMIN too; the line names every missing capability.
        missing = missing_capabilities(Host.here()) if capabilities.owns_network() else ""
        reason = missing or str(error)
        return NoFlows(), f"no flow can be looked up: {reason}"
    refused: list[str] = []
    if isinstance(ahead, Program):
        try:
            return BpfFlows(zones, others=netlink, program=ahead), None
        except (NfqGuardError, OSError) as error:
            return netlink, str(error)
    if instance is not None:
        pinned, absent = _open_pinned(zones, netlink, instance, refused)
        if pinned is not None:
            return pinned, None
    else:
        absent = ""
    if ahead is not None:
        refused.append(ahead)
        return netlink, "; ".join(dict.fromkeys(refused))
    try:
        loaded = BpfFlows(zones, others=netlink)
    except LoadError as error:
        refused.append(unavailable_reason(error, Host.here()) + absent)
    except (NfqGuardError, OSError) as error:
        refused.append(str(error))
    else:
        return loaded, "; ".join(refused) or None
    return netlink, "; ".join(dict.fromkeys(refused))


def _open_pinned(
    zones: Sequence[int], netlink: CtnetlinkFlows, instance: str, refused: list[str]
) -> tuple[BpfFlows | None, str]:
    """The lookup by a pinned program, or an addition to the reason why none can be loaded.

    Args:
        zones: As `open_lookup`.
        netlink: The lookup for other protocols.
        instance: As `open_lookup`.
        refused: Gets a line if there are pins, but none that may be used.
    """
    try:
        program = pins.open_pinned(instance)
        if program is not None:
            return BpfFlows(zones, others=netlink, program=program), ""
    except LoadError as error:
        refused.append(unavailable_reason(error, Host.here()))
    except NfqGuardError as error:
        refused.append(str(error))
    except OSError as error:
        refused.append(f"the pinned program cannot be run: {error.strerror}")
    else:
        return None, ", and no pinned program is found: `nfq-guard prepare` as root pins it"
    return None, ""
