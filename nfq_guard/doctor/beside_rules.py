# SPDX-License-Identifier: MIT
"""What treats packets of this host beside its rules: BPF programs, filters of tc, and IPVS.

Only their presence is read. What they do to a packet is not, so the checks of the rules leave it
out.
"""

import ctypes
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, final

from nfq_guard.doctor import collect
from nfq_guard.doctor.check import Check, note, warning
from nfq_guard.flows.libbpf import LIBRARY
from nfq_guard.names import counted

_MOST: Final = 3
_QDISCS: Final = {"clsact": ("ingress", "egress"), "ingress": ("ingress",)}
"""The queueing disciplines of tc with filters for every packet, and their directions."""
_TCX: Final = {46: "ingress", 47: "egress"}
"""BPF_TCX_INGRESS and BPF_TCX_EGRESS, the attachments that tc does not list."""
_NETFILTER_LINK: Final = 10
_FAMILIES: Final = {2: "IPv4", 10: "IPv6"}
_HOOKS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_PROGRAMS_MAX: Final = 64
_LINKS_MAX: Final = 4096
_INFO_SIZE: Final = 128
# `struct bpf_link_info`: its type, and of a link to netfilter family, hook and priority.
_TYPE: Final = struct.Struct("=I")
_ATTACHED: Final = struct.Struct("=IIi")
_ATTACHED_AT: Final = 16
_IPVS_CONNTRACK: Final = collect.SYSCTLS / "ipv4" / "vs" / "conntrack"
_SERVICES: Final = frozenset({"TCP", "UDP", "SCTP", "FWM"})


@final
class Filters(NamedTuple):
    """Filters of tc, or programs of tcx, on an interface.

    Attributes:
        interface: The interface.
        direction: `ingress` or `egress`.
        kinds: Their kinds, such as `bpf`.
    """

    interface: str
    direction: str
    kinds: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Beside:
    """What treats packets beside the rules.

    Attributes:
        xdp: The interfaces with a program of XDP.
        filters: The filters of tc.
        hooks: The hooks of netfilter with a BPF program, in any network namespace.
        services: The number of virtual services of IPVS.
        halves: Whether conntrack sees one direction only of connections that IPVS translates.
    """

    xdp: Sequence[str] = ()
    filters: Sequence[Filters] = ()
    hooks: Sequence[str] = ()
    services: int = 0
    halves: bool = False


def read() -> Beside:
    """Read it, in the network namespace of the calling thread; what cannot be read is absent."""
    links = _listed("ip", "-json", "link", "show")
    ipvs = collect.text(collect.NET / "ip_vs")
    return Beside(
        xdp=[str(link.get("ifname")) for link in links if "xdp" in link],
        filters=[*_filters_of_tc(), *_programs_of_tcx(links)],
        hooks=list(_hooks()),
        services=services(ipvs),
        halves=translates(ipvs) and collect.number(_IPVS_CONNTRACK) == 0,
    )


def services(text: str) -> int:
    """The number of virtual services in /proc/net/ip_vs."""
    return sum(line.partition(" ")[0] in _SERVICES for line in text.splitlines())


def translates(text: str) -> bool:
    """Whether a service in /proc/net/ip_vs has a server whose packets are translated."""
    return any(line.split()[2:3] == ["Masq"] for line in text.splitlines())


def checks(beside: Beside) -> Iterator[Check]:
    """The checks `foreign.bpf`, `foreign.ipvs` and `tracking.ipvs`, where there is such a thing."""
    parts: list[str] = []
    if beside.xdp:
        parts.append(f"XDP on {_first(beside.xdp)}")
    if beside.filters:
        where = (f"{each.interface} ({_kind(each)})" for each in beside.filters)
        parts.append(f"tc on {_first(list(dict.fromkeys(where)))}")
    if beside.hooks:
        parts.append(f"netfilter, in one network namespace or another, at {_first(beside.hooks)}")
    if parts:
        yield note(
            "foreign.bpf",
            f"programs beside the rules treat packets: {'; '.join(parts)}. What they drop, send "
            "elsewhere or translate is not known here, and no finding on rules takes it into "
            "account",
            "see them with `bpftool net`, `bpftool link` and `tc filter show dev DEVICE ingress`",
        )
    if beside.services:
        yield note(
            "foreign.ipvs",
            f"IPVS has {counted(beside.services, 'virtual service')}. It takes packets of their "
            "connections, INVALID ones too, in INPUT and FORWARD, and translates or sends them on "
            "by a table of its own: no finding on rules takes that into account, and for conntrack "
            "these flows are not translated (`nat` none)",
            "see them with `ipvsadm -Ln`",
        )
    if beside.halves:
        yield warning(
            "tracking.ipvs",
            "net.ipv4.vs.conntrack is 0: conntrack does not know the answers of servers to which "
            "IPVS translates, and calls each SYN+ACK INVALID (no-entry); a rule or a policy that "
            "drops it lets nobody connect",
            "set it to 1, as kube-proxy does, or leave packets without an entry (no-entry) allowed",
        )


def _kind(filters: Filters) -> str:
    return ", ".join((filters.direction, *filters.kinds))


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST])
    more = len(names) - _MOST
    return f"{shown} and {more} more" if more > 0 else shown


def _listed(*argv: str) -> list[dict[str, Any]]:
    """The objects that a program lists as JSON; none where it fails."""
    try:
        found = json.loads(collect.output(*argv) or "[]")
    except ValueError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _filters_of_tc() -> Iterator[Filters]:
    for qdisc in _listed("tc", "-json", "qdisc", "show"):
        interface = str(qdisc.get("dev"))
        for direction in _QDISCS.get(str(qdisc.get("kind")), ()):
            found = _listed("tc", "-json", "filter", "show", "dev", interface, direction)
            kinds = dict.fromkeys(str(each["kind"]) for each in found if "kind" in each)
            if kinds:
                yield Filters(interface, direction, tuple(kinds))


def _programs_of_tcx(links: Iterable[dict[str, Any]]) -> Iterator[Filters]:
    library = _library()
    if library is None:
        return
    for link in links:
        index = link.get("ifindex")
        for kind, direction in _TCX.items():
            if isinstance(index, int) and _has_programs(library, index, kind):
                yield Filters(str(link.get("ifname")), direction, ("bpf",))


def _has_programs(library: ctypes.CDLL, index: int, kind: int) -> bool:
    programs = (ctypes.c_uint32 * _PROGRAMS_MAX)()
    count = ctypes.c_uint32(_PROGRAMS_MAX)
    # Kernels before 6.6 refuse the kind.
    failed = library.bpf_prog_query(index, kind, 0, None, programs, ctypes.byref(count))
    return not failed and count.value > 0


def _hooks() -> Iterator[str]:
    """The hooks of netfilter to which a program is linked; takes CAP_SYS_ADMIN."""
    library = _library()
    number = ctypes.c_uint32(0)
    found: dict[str, None] = {}
    for _ in range(_LINKS_MAX):
        if library is None or library.bpf_link_get_next_id(number, ctypes.byref(number)):
            break
        descriptor = library.bpf_link_get_fd_by_id(number)
        if descriptor >= 0:  # the link may be gone
            info = ctypes.create_string_buffer(_INFO_SIZE)
            size = ctypes.c_uint32(_INFO_SIZE)
            failed = library.bpf_obj_get_info_by_fd(descriptor, info, ctypes.byref(size))
            os.close(descriptor)
            if not failed and _TYPE.unpack_from(info.raw)[0] == _NETFILTER_LINK:
                found[_hook(info.raw)] = None
    yield from found


def _hook(info: bytes) -> str:
    family, hook, priority = _ATTACHED.unpack_from(info, _ATTACHED_AT)
    name = _HOOKS[hook] if hook < len(_HOOKS) else f"hook {hook}"
    return f"{_FAMILIES.get(family, f'family {family}')} {name} with priority {priority}"


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """libbpf; None where it is not installed or lacks a function."""
    try:
        library = ctypes.CDLL(LIBRARY)
        for name in (
            "bpf_prog_query",
            "bpf_link_get_next_id",
            "bpf_link_get_fd_by_id",
            "bpf_obj_get_info_by_fd",
        ):
            getattr(library, name).restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library
