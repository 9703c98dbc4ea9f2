# SPDX-License-Identifier: MIT
"""The networks that this host hides by masquerade and SNAT, and late RSTs that expose them."""

import re
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from nfq_guard.doctor.check import Check, note, ok
from nfq_guard.doctor.path import Met
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import PROTO_TCP, Hook
from nfq_guard.policy.decision import Policy
from nfq_guard.policy.intervals import is_private
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, RST, Queued

TARGETS: Final = frozenset({"MASQUERADE", "SNAT", "NETMAP"})

Network = IPv4Network | IPv6Network

# The source address of a rule, in the form of `follow`'s conditions.
_NETWORK: Final = r"[0-9a-f:.]+(?:/\d+)?"
_SOURCE: Final = re.compile(rf"(?:-s|ip6? saddr) (?:\{{ )?({_NETWORK}(?:, {_NETWORK})*)(?: \}})?$")
_LEAVING: Final = re.compile(r"(?:-o|oif(?:name)?) (?!!)")
# A network of the private sources of which a rule for all sources hides some.
_PRIVATE: Final = {4: ip_network("192.168.0.0/16"), 6: ip_network("fd00::/8")}
_OUTSIDE: Final = {4: bytes((198, 51, 100, 1)), 6: bytes.fromhex("2001") + bytes(13) + b"\x01"}


def networks(path: Iterable[Met]) -> dict[Network, str]:
    """The source networks that rules translate, each with its rule."""
    found: dict[Network, str] = {}
    for met in path:
        finding = met.finding
        if met.hook != "postrouting" or finding.rule.target not in TARGETS:
            continue
        for word in finding.on:
            match = _SOURCE.match(word)
            for text in () if match is None else match[1].split(", "):
                found.setdefault(ip_network(text, strict=False), finding.rule.text)
    return found


def _of_all_sources(path: Iterable[Met]) -> dict[int, str]:
    """By family, a rule that translates all that leaves by an interface, whatever its source."""
    found: dict[int, str] = {}
    for met in path:
        finding = met.finding
        leaving = any(_LEAVING.match(word) for word in finding.on) and finding.by_interface
        if met.hook == "postrouting" and finding.rule.target in TARGETS and leaving:
            found.setdefault(finding.table.family, finding.rule.text)
    return found


def checks(path: Iterable[Met], policy: Policy) -> Iterator[Check]:
    """Whether late RSTs of hidden networks would leave untranslated under this policy."""
    mets = list(path)
    hidden = {str(network): (network, rule) for network, rule in networks(mets).items()}
    for family, rule in _of_all_sources(mets).items():
        hidden[f"private IPv{family} sources"] = (_PRIVATE[family], rule)
    if not hidden:
        return
    leaking: dict[str, Network] = {}
    for name, (network, _) in hidden.items():
        packet = _late_rst(network)
        queued = Queued(packet, Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)
        decision = policy.decide(queued, decode(packet), None, Finding(Reason.NO_ENTRY), 0.0)
        if not decision.drops:
            leaking[name] = network
    names = ", ".join(f"{name} (`{rule}`)" for name, (_, rule) in hidden.items())
    if not leaking:
        yield ok("policy.leak", f"no late RST of a hidden network leaves untranslated: {names}")
        return
    public = [
        name for name, network in leaking.items() if not is_private(network.network_address.packed)
    ]
    todo = 'include = "preset:no-leak" drops them'
    if public:
        todo += (
            f"; for {', '.join(public)}, which is not private, add a rule with src, reason "
            "no-entry and tcp_flags rst, fin"
        )
    yield note(
        "policy.leak",
        f"late RST and FIN of {', '.join(leaking)} leave untranslated; the host's rules hide "
        f"{names}",
        todo,
    )


def _late_rst(network: Network) -> bytes:
    """An RST from the network's second address, or its only one, to an outside address."""
    src = network[min(1, network.num_addresses - 1)].packed
    dst = _OUTSIDE[network.version]
    body = struct.pack("!HHIIBBHHH", 443, 40000, 1, 0, 5 << 4, RST, 0, 0, 0)
    if network.version == 4:
        length = 20 + len(body)
        head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, PROTO_TCP, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), PROTO_TCP, 64)
    return head + src + dst + body
