# SPDX-License-Identifier: MIT
"""The networks that this host hides by masquerade and SNAT, and late RSTs that expose them."""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
    summarize_address_range,
)
from typing import Final, NamedTuple, final

from nfq_guard.doctor import ipsets
from nfq_guard.doctor.check import Check, note, ok
from nfq_guard.doctor.default_deny import is_interface
from nfq_guard.doctor.follow import Finding as Followed
from nfq_guard.doctor.header_words import addresses, split
from nfq_guard.doctor.path import Met
from nfq_guard.finding import Finding, Reason
from nfq_guard.flow import PROTO_TCP, Hook
from nfq_guard.names import counted
from nfq_guard.policy.decision import Policy
from nfq_guard.policy.intervals import is_private
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import CHECKSUM_GOOD, RST, Queued

TARGETS: Final = frozenset({"MASQUERADE", "SNAT", "NETMAP"})

Network = IPv4Network | IPv6Network

_LEAVING: Final = re.compile(r"(?:-o|oif(?:name)?) (?!!)")
_SOURCES: Final = frozenset({"-s", "--src-range", "saddr"})
_ENDS: Final = _SOURCES | {"-d", "--dst-range", "daddr"}
_CONCATENATED: Final = re.compile(r"(?P<fields>[^{@!]+ \. [^{@!]+?) (?P<value>\{ .* \}|@\S+)")
# A network of the private sources of which a rule for all sources hides some.
_PRIVATE: Final = {4: ip_network("192.168.0.0/16"), 6: ip_network("fd00::/8")}
_MOST: Final = 8
"""Sources that are named."""
_OUTSIDE: Final = {4: bytes((198, 51, 100, 1)), 6: bytes.fromhex("2001") + bytes(13) + b"\x01"}


@final
class Hidden(NamedTuple):
    """Sources that a rule translates.

    Attributes:
        network: The network, or the first one of a range.
        rule: The rule.
    """

    network: Network
    rule: str


def networks(path: Iterable[Met], sets: ipsets.Sets | None = None) -> dict[str, Hidden]:
    """The source addresses, networks and ranges that rules translate, by their text.

    Args:
        path: The rules that a packet meets in every hook, for both families.
        sets: The sets of `ipset`.
    """
    found: dict[str, Hidden] = {}
    for finding in _translating(path):
        for word in finding.on:
            for element in _elements(word, finding, sets or {}):
                for network in _networks(element):
                    found.setdefault(element, Hidden(network, finding.rule.text))
    return found


def sets_of_sources(path: Iterable[Met]) -> dict[str, str]:
    """The sets of `ipset` that name sources that rules translate, each with such a rule."""
    found: dict[str, str] = {}
    for finding in _translating(path):
        for word in finding.on:
            named = _of_ipset(word)
            if named is not None:
                found.setdefault(named[0], finding.rule.text)
    return found


def _of_ipset(word: str) -> tuple[str, int] | None:
    """The set of `ipset` in which a condition looks for sources, and which part these are."""
    parted = split(word)
    if parted is None or parted.name != ipsets.MATCH or parted.negated:
        return None
    parts = parted.more.split(",")
    return (parted.parts[0], parts.index("src")) if "src" in parts else None


def _elements(word: str, finding: Followed, sets: ipsets.Sets) -> Iterator[str]:
    """The sources that a condition names, those of sets one by one."""
    named = _of_ipset(word)
    if named is not None:
        name, place = named
        yield from (_part(element.split(","), place) for element in sets.get(name, ()))
        return
    listed, place = _concatenated(word) or (_sources(word), 0)
    for part in listed:
        elements = finding.table.sets.get(part[1:], ()) if part[0] == "@" else (part,)
        yield from (_part(element.split(" . "), place) for element in elements)


def _part(parts: Sequence[str], place: int) -> str:
    return parts[place] if place < len(parts) else ""


def _concatenated(word: str) -> tuple[tuple[str, ...], int] | None:
    """The elements of a concatenation with a source in nft, and the place of the source."""
    match = _CONCATENATED.fullmatch(word)
    if " != " in word:
        return None
    if match is not None:
        fields, values = match["fields"].split(" . "), match["value"].strip("{ }").split(", ")
    else:
        parts = word.split(" . ")
        middle, odd = divmod(len(parts), 2)
        field, _, value = parts[middle].rpartition(" ") if odd else ("", "", "")
        fields, values = [*parts[:middle], field], [" . ".join((value, *parts[middle + 1 :]))]
    places = [place for place, each in enumerate(fields) if each in {"ip saddr", "ip6 saddr"}]
    return (tuple(values), places[0]) if len(fields) > 1 and places else None


def _translating(path: Iterable[Met]) -> Iterator[Followed]:
    """The rules that translate the source of packets that leave."""
    for met in path:
        if met.hook == "postrouting" and met.finding.rule.target in TARGETS:
            yield met.finding


def _sources(word: str) -> tuple[str, ...]:
    """The sources that a condition names; none if it is another one."""
    parted = split(word)
    if parted is None or parted.negated or parted.name not in _SOURCES:
        return ()
    return parted.parts


def _networks(text: str) -> Iterator[Network]:
    """The networks of an address, a network or a range; none of another text."""
    try:
        first, last = addresses(text)
    except ValueError:
        return
    if isinstance(first, IPv4Address) and isinstance(last, IPv4Address):  # noqa: SIM114 - by type
        yield from summarize_address_range(first, last)
    elif isinstance(first, IPv6Address) and isinstance(last, IPv6Address):
        yield from summarize_address_range(first, last)


def _of_all_sources(path: Iterable[Met]) -> dict[int, str]:
    """By family, a rule that translates all that leaves, or all of an interface."""
    found: dict[int, str] = {}
    for finding in _translating(path):
        family = finding.table.family
        leaving = any(map(_LEAVING.match, finding.on))
        # Without an interface, an earlier rule may have taken packets out, as kube-proxy's does.
        if (leaving or not finding.spared) and all(_leaves(word, family) for word in finding.on):
            found.setdefault(family, finding.rule.text)
    return found


def _leaves(word: str, family: int) -> bool:
    """Whether private sources remain under a condition: one on interfaces, or an exception."""
    if is_interface(word):
        return True
    parted = split(word)
    if parted is None or not parted.negated:
        return False
    if parted.name == ipsets.MATCH:
        return "src" not in parted.more.split(",")
    if parted.name not in _ENDS:
        return False
    excepted = [network for part in parted.parts for network in _networks(part)]
    if parted.name not in _SOURCES or not excepted:
        return parted.name not in _SOURCES
    sample = _PRIVATE[family]
    return not any(
        each.overlaps(sample) and each.prefixlen <= sample.prefixlen for each in excepted
    )


def checks(path: Iterable[Met], policy: Policy, sets: ipsets.Sets | None = None) -> Iterator[Check]:
    """Whether late RSTs of hidden networks would leave untranslated under this policy.

    Args:
        path: The rules that a packet meets in every hook, for both families.
        policy: The policy.
        sets: The sets of `ipset`.
    """
    mets = list(path)
    unread = {
        name: rule for name, rule in sets_of_sources(mets).items() if name not in (sets or {})
    }
    if unread:
        names = _some([f"{name} (`{rule}`)" for name, rule in unread.items()])
        yield note(
            "policy.leak",
            f"not all sources that the host's rules hide are known: `ipset save` fails for {names}",
            "install the Debian package ipset and run it as root, or check these sources by hand",
        )
    hidden = networks(mets, sets)
    for family, rule in _of_all_sources(mets).items():
        hidden[f"private IPv{family} sources"] = Hidden(_PRIVATE[family], rule)
    if not hidden:
        return
    leaking: dict[str, Network] = {}
    for name, (network, _) in hidden.items():
        packet = _late_rst(network)
        queued = Queued(packet, Hook.PREROUTING, "eth0", "", 0, CHECKSUM_GOOD)
        decision = policy.decide(queued, decode(packet), None, Finding(Reason.NO_ENTRY), 0.0)
        if not decision.drops:
            leaking[name] = network
    names = _some([f"{name} (`{rule}`)" for name, (_, rule) in hidden.items()])
    if not leaking:
        yield ok("policy.leak", f"no late RST of a hidden network leaves untranslated: {names}")
        return
    public = [
        name for name, network in leaking.items() if not is_private(network.network_address.packed)
    ]
    todo = 'include = "preset:no-leak" drops them'
    if public:
        todo += (
            f"; for {_some(public)}, which is not private, add a rule with src, reason "
            "no-entry and tcp_flags rst, fin"
        )
    yield note(
        "policy.leak",
        f"late RST and FIN of {_some(list(leaking))} leave untranslated; the host's rules hide "
        f"{names}",
        todo,
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {counted(more, 'other')}" if more > 0 else "")


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
