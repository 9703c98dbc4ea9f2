# SPDX-License-Identifier: MIT
"""Hypothesis strategies for policies, packets and flows, and an interpreter of policies."""

import ipaddress
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import assert_never

from hypothesis import strategies as st

from nfq_guard.finding import BOUNDS, Breach, Finding, Reason
from nfq_guard.flow import (
    IPS_ASSURED,
    IPS_DYING,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    Hook,
    Nat,
    TcpState,
)
from nfq_guard.policy.decision import Action
from nfq_guard.policy.fields import FIELDS, FLAG_BITS, FLAG_WORDS, Field, Kind
from nfq_guard.policy.model import PolicyModel
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import (
    Datagram,
    IcmpMessage,
    Malformed,
    Packet,
    Queued,
    SctpPacket,
    Segment,
)

Case = tuple[Queued, Packet | Malformed, FlowSnapshot | None, Finding]

_V4 = ("10.0.0.1", "10.0.0.2", "10.9.9.9", "192.0.2.1", "8.8.8.8", "100.64.1.1", "127.0.0.1")
_V6 = ("fd00::1", "2001:db8::1", "fe80::1", "2001:db8:1::9")
_NETS = ("10.0.0.0/8", "10.0.0.0/31", "192.0.2.1", "0.0.0.0/0", "::/0", "fd00::/8", "2001:db8::/48")
_NAMES = ("", "eth0", "eth1", "cali1234", "lo")
_PATTERNS = ("eth0", "eth*", "*", "cali????", "e*1", "lo")
_PORTS = (0, 53, 80, 443, 1024, 40000, 65535)
_MARKS = (0, 1, 0x10, 0x11, 0x4000, 0xFFFFFFFF)
_DISTANCES = (1, 2, 1459, 1460, 100_000)


def cases() -> st.SearchStrategy[Case]:
    """A packet with all facts that a policy uses."""
    queued = st.builds(
        Queued,
        st.just(b""),
        st.sampled_from([int(hook) for hook in Hook]),
        st.sampled_from(_NAMES),
        st.sampled_from(_NAMES),
        st.sampled_from(_MARKS),
        st.just(0),
    )
    return st.tuples(queued, _packets(), st.none() | _snapshots(), _findings())


def diagnosed_cases() -> st.SearchStrategy[Case]:
    """Cases with findings that `diagnose` can return."""
    return cases().filter(_can_be_diagnosed).map(_of_its_flow)


def _can_be_diagnosed(case: Case) -> bool:
    """Whether the finding is possible: a broken packet is malformed, without further facts."""
    _, packet, snapshot, finding = case
    malformed = finding.reason is Reason.MALFORMED
    if isinstance(packet, Malformed):
        return malformed and snapshot is None
    return not malformed or isinstance(packet.l4, IcmpMessage)


def _of_its_flow(case: Case) -> Case:
    """Whether packet and flow have the same protocol, as all do except ICMP errors."""
    _, packet, snapshot, _ = case
    if (
        snapshot is not None
        and isinstance(packet, Packet)
        and not isinstance(packet.l4, IcmpMessage)
    ):
        snapshot.original.proto = packet.proto
    return case


def _packets() -> st.SearchStrategy[Packet | Malformed]:
    ports = st.sampled_from(_PORTS)
    segment = st.builds(
        Segment,
        ports,
        ports,
        st.just(seq(1)),
        st.just(seq(2)),
        st.integers(0, 255),
        st.just(100),
        st.sampled_from((0, 1, 1460)),
        st.just(b""),
        st.just(0),
    )
    datagram = st.builds(Datagram, ports, ports, st.sampled_from((8, 9, 100)), st.just(0))
    sctp = st.builds(SctpPacket, ports, ports, st.just(1), st.just(2), st.just(()), st.just(True))
    icmp = st.just(IcmpMessage(3, 4, 0, 0, True, None))
    transports = st.one_of(
        segment.map(lambda l4: (6, l4)),
        segment.map(lambda l4: (6, l4)),
        datagram.map(lambda l4: (17, l4)),
        sctp.map(lambda l4: (132, l4)),
        icmp.map(lambda l4: (1, l4)),
        st.sampled_from([(0, None), (47, None), (58, None)]),
    )

    def packet(ends: tuple[str, str], transport: tuple[int, Segment | None]) -> Packet:
        src, dst = (ipaddress.ip_address(end).packed for end in ends)
        proto, l4 = transport
        return Packet(4 if len(src) == 4 else 6, src, dst, proto, 60, 20, 64, 0, False, l4)

    v4, v6 = st.sampled_from(_V4), st.sampled_from(_V6)
    whole = st.builds(packet, st.tuples(v4, v4) | st.tuples(v6, v6), transports)
    broken = st.sampled_from(
        [
            Malformed("too short"),
            Malformed("too short", 4, bytes([10, 0, 0, 1]), bytes([8, 8, 8, 8]), 6),
        ]
    )
    return st.one_of(whole, whole, whole, broken)


def _snapshots() -> st.SearchStrategy[FlowSnapshot]:
    def snapshot(
        evidence: Evidence, direction: int, proto: int, bits: list[int], mark: int, state: int
    ) -> FlowSnapshot:
        way = FlowTuple(proto, b"\n\0\0\1", b"\n\0\0\2", 1, 2)
        return FlowSnapshot(evidence, direction, way, way, sum(bits), mark, 0, 60, state, None)

    status = st.lists(st.sampled_from([1 << bit for bit in range(16)]), unique=True, max_size=6)
    return st.builds(
        snapshot,
        st.sampled_from(Evidence),
        st.sampled_from((0, 1)),
        st.sampled_from((6, 6, 17)),
        status,
        st.sampled_from(_MARKS),
        st.sampled_from([int(state) for state in TcpState]),
    )


def _findings() -> st.SearchStrategy[Finding]:
    def finding(reason: Reason, distance: int) -> Finding:
        if reason not in BOUNDS:
            return Finding(reason)
        return Finding(reason, Breach(reason, seq(distance), seq(0), distance))

    return st.builds(finding, st.sampled_from(Reason), st.sampled_from(_DISTANCES))


def tables(*, with_rates: bool = False) -> st.SearchStrategy[dict[str, object]]:
    """A `[policy]` table without mistakes."""
    actions = st.sampled_from(["drop", "log", "allow"])
    return st.fixed_dictionaries(
        {
            "default": actions,
            "on_unknown": actions,
            "i_know": st.just("drops everything"),
            "rule": st.lists(_rules(with_rates=with_rates), max_size=8),
        }
    )


def _rules(*, with_rates: bool) -> st.SearchStrategy[dict[str, object]]:
    keys: dict[str, st.SearchStrategy[object]] = {field.name: _values(field) for field in FIELDS}
    rate: dict[str, st.SearchStrategy[object]] = {}
    if with_rates:
        rate["rate"] = st.fixed_dictionaries(
            {
                "over": st.integers(1, 3),
                "in_s": st.sampled_from([1, 0.5, 10]),
                "by": st.sampled_from(["flow", "source", "segment"]),
            }
        )

    def rule(
        head: dict[str, object], plain: dict[str, object], nots: dict[str, object]
    ) -> dict[str, object]:
        if "rate" in plain:
            nots.pop("rate", None)
        return {**head, **plain, **({"not": nots} if nots else {})}

    def rate_rule(
        head: dict[str, object], plain: dict[str, object], rate: object, *, negated: bool
    ) -> dict[str, object]:
        return {**head, **plain, **({"not": {"rate": rate}} if negated else {"rate": rate})}

    head = st.fixed_dictionaries(
        {"action": st.sampled_from(["drop", "log", "allow"])},
        optional={"mark": st.sampled_from(_MARKS), "comment": st.just("because")},
    )
    free = keys.keys() - {"reason", "state", "status", "evidence"}
    heal = st.builds(
        rule, st.just({"action": "heal"}), few({name: keys[name] for name in free}), few(keys)
    )
    rules = st.builds(rule, head, few(keys | rate), few(keys | rate)) | heal
    if not with_rates:
        return rules
    plain = few({name: keys[name] for name in ("nat", "family", "payload")})
    return rules | st.builds(rate_rule, head, plain, rate["rate"], negated=st.booleans())


def few(keys: Mapping[str, st.SearchStrategy[object]]) -> st.SearchStrategy[dict[str, object]]:
    """A table with up to three of `keys`."""
    return st.lists(st.sampled_from(sorted(keys)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: keys[name] for name in names})
    )


def _values(field: Field) -> st.SearchStrategy[object]:
    value: st.SearchStrategy[object]
    match field.kind:
        case Kind.WORD | Kind.STATUS:
            value = st.sampled_from(field.words)
            if field.name == "family":
                value = st.sampled_from([4, 6])
        case Kind.NUMBER:
            value = _numbers(field)
        case Kind.FLAGS:
            value = st.lists(
                st.sampled_from(FLAG_WORDS), min_size=1, max_size=4, unique=True
            ).flatmap(
                lambda words: st.tuples(
                    *(st.sampled_from([word, f"!{word}"]) for word in words)
                ).map(" ".join)
            )
        case Kind.NETWORK:
            value = st.sampled_from(_NETS)
        case Kind.PATTERN:
            value = st.sampled_from(_PATTERNS)
        case Kind.MARK:
            value = st.sampled_from([*_MARKS, "0x10/0xff", "0x0/0x1", "1/1", "17"])
        case Kind.SWITCH:
            return st.booleans()
        case _:
            assert_never(field.kind)
    return value | st.lists(value, min_size=1, max_size=3)


def _numbers(field: Field) -> st.SearchStrategy[object]:
    if field.name == "proto":
        return st.sampled_from(["tcp", "udp", "icmp", "icmpv6", 6, 47, "1..17", "6.."])
    numbers = sorted(_DISTANCES if field.name == "distance" else _PORTS)
    pairs = st.tuples(st.sampled_from(numbers), st.sampled_from(numbers)).map(sorted)
    return st.one_of(
        st.sampled_from(numbers),
        pairs.map(lambda pair: f"{pair[0]}..{pair[1]}"),
        st.sampled_from(numbers).map(lambda number: f"{number}.."),
        st.sampled_from(numbers).map(lambda number: f"..{number}"),
    )


class Interpreter:
    """Interprets the table of a policy from top to bottom for each packet, without an index."""

    def __init__(self, table: Mapping[str, object], model: PolicyModel) -> None:
        self._model = model
        self._rules: list[dict[str, object]] = table["rule"]  # type: ignore[assignment] # made above
        self._counts: dict[tuple[int, object], tuple[float, int]] = {}

    def decide(self, case: Case, now: float) -> tuple[Action, str]:
        for number, rule in enumerate(self._rules):
            if self._matches(number, rule, case, now):
                model_rule = self._model.rules[number]
                return model_rule.action, model_rule.name
        if case[3].reason is Reason.UNSUPPORTED:
            return self._model.on_unknown, "on-unknown"
        return self._model.default, "default"

    def _matches(self, number: int, rule: dict[str, object], case: Case, now: float) -> bool:
        if rule["action"] == "heal" and not _can_heal(case, wide="distance" in rule):
            return False
        nots: dict[str, object] = rule.get("not", {})  # type: ignore[assignment] # made above
        names = {field.name for field in FIELDS}
        for table, wanted in ((rule, True), (nots, False)):
            for name in table.keys() & names:
                found = table[name]
                values = found if isinstance(found, list) else [found]
                if any(_holds(name, value, case) for value in values) is not wanted:
                    return False
        for table, wanted in ((rule, True), (nots, False)):
            if "rate" in table:
                return self._beyond(number, table["rate"], case, now) is wanted  # type: ignore[arg-type]  # made above
        return True

    def _beyond(self, number: int, rate: dict[str, object], case: Case, now: float) -> bool:
        packet = case[1]
        ends = sorted([(packet.src, _port(packet, 0)), (packet.dst, _port(packet, 1))])
        key: object = packet.src
        if rate["by"] == "flow":
            key = (packet.proto, *ends)
        elif rate["by"] == "segment":
            key = (packet.proto, *ends)
            if isinstance(packet, Packet) and isinstance(packet.l4, Segment):
                l4 = packet.l4
                flags = [name for name in ("fin", "syn", "rst", "ack") if _flag(l4, name)]
                numbers = (l4.seq, l4.ack, l4.payload_len)
                key = (packet.src, packet.dst, l4.sport, l4.dport, *numbers, *flags)
        start, count = self._counts.get((number, key), (now, 0))
        if now - start >= float(str(rate["in_s"])):
            start, count = now, 0
        self._counts[number, key] = (start, count + 1)
        return count + 1 > int(str(rate["over"]))


def _flag(segment: Segment, name: str) -> bool:
    return segment.flags & dict(zip(FLAG_WORDS, FLAG_BITS, strict=True))[name] != 0


def _can_heal(case: Case, *, wide: bool) -> bool:
    """Whether a rule that heals may match; `wide` if the rule has a condition on the distance."""
    _, packet, flow, finding = case
    if flow is None or finding.breach is None:
        return False
    breach = finding.breach
    segment = packet.l4 if isinstance(packet, Packet) else None
    return (
        breach.bound is not Reason.RST_OUTSIDE
        and (wide or breach.distance <= 65535)
        and flow.original.proto == 6
        and flow.evidence in {"bpf", "replay"}
        and TcpState(flow.state).name in {"ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"}
        and flow.status & (IPS_ASSURED | IPS_DYING | IPS_OFFLOAD) == IPS_ASSURED
        and not (isinstance(segment, Segment) and (_flag(segment, "rst") or _flag(segment, "syn")))
    )


def _port(packet: Packet | Malformed, end: int) -> int:
    l4 = packet.l4 if isinstance(packet, Packet) else None
    if isinstance(l4, Segment | Datagram | SctpPacket):
        return (l4.sport, l4.dport)[end]
    return 0


def _holds(name: str, value: object, case: Case) -> bool:
    queued, packet, flow, finding = case
    match name:
        case "reason":
            return finding.reason == value
        case "distance":
            return finding.breach is not None and _in_range(value, finding.breach.distance)
        case "in" | "out":
            interface = queued.indev if name == "in" else queued.outdev
            return interface != "" and fnmatchcase(interface, str(value))
        case "hook":
            return Hook(queued.hook).name == value
        case "packet_mark":
            return _mark_holds(value, queued.mark)
        case "leak":
            return _leaks(case) is value
        case "nat":
            return (flow.nat if flow else Nat.UNKNOWN) == value
        case "evidence":
            return (flow.evidence if flow else Evidence.NONE) == value
        case "direction" | "state" | "status" | "ct_mark":
            return flow is not None and _flow_holds(name, value, flow)
        case _:
            return _packet_holds(name, value, packet)


def _flow_holds(name: str, value: object, flow: FlowSnapshot) -> bool:
    match name:
        case "direction":
            return ("original", "reply")[flow.direction] == value
        case "state":
            return flow.original.proto == 6 and TcpState(flow.state).name == value
        case "status":
            bits = {
                "seen-reply": IPS_SEEN_REPLY,
                "assured": IPS_ASSURED,
                "dying": IPS_DYING,
                "offload": IPS_OFFLOAD,
            }
            return bool(flow.status & bits[str(value)])
        case _:
            return _mark_holds(value, flow.mark)


def _packet_holds(name: str, value: object, packet: Packet | Malformed) -> bool:
    match name:
        case "family":
            return packet.family == value
        case "proto":
            named = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
            return packet.proto != 0 and _in_range(named.get(str(value), value), packet.proto)
        case "src" | "dst":
            octets = packet.src if name == "src" else packet.dst
            return bool(octets) and ipaddress.ip_address(octets) in ipaddress.ip_network(str(value))
        case _:
            l4 = packet.l4 if isinstance(packet, Packet) else None
            if isinstance(l4, Segment) and name == "tcp_flags":
                return _flags_hold(str(value), l4.flags)
            if not isinstance(l4, Segment | Datagram | SctpPacket) or name == "tcp_flags":
                return False
            if name == "payload":
                if isinstance(l4, SctpPacket):
                    return False
                octets_of_data = l4.payload_len if isinstance(l4, Segment) else l4.length - 8
                return (octets_of_data > 0) is value
            return _in_range(value, l4.sport if name == "sport" else l4.dport)


def _in_range(value: object, number: int) -> bool:
    if isinstance(value, int):
        return number == value
    low, _, high = str(value).partition("..")
    return (not low or number >= int(low)) and (not high or number <= int(high))


def _flags_hold(value: str, flags: int) -> bool:
    bits = dict(zip(FLAG_WORDS, FLAG_BITS, strict=True))
    return all(
        bool(flags & bits[word.removeprefix("!")]) is not word.startswith("!")
        for word in value.split()
    )


def _mark_holds(value: object, mark: int) -> bool:
    bits, _, mask = str(value).partition("/")
    return mark & (int(mask, 0) if mask else 0xFFFFFFFF) == int(bits, 0)


def _leaks(case: Case) -> bool:
    _, packet, flow, finding = case
    if flow is not None or isinstance(packet, Malformed) or finding.reason == Reason.UNSUPPORTED:
        return False
    src, dst = ipaddress.ip_address(packet.src), ipaddress.ip_address(packet.dst)
    private = src in ipaddress.ip_network("fc00::/7" if src.version == 6 else "10.0.0.0/8")
    shared = src.version == 4 and src in ipaddress.ip_network("100.64.0.0/10")
    return (private or shared) and str(dst) in {
        "8.8.8.8",
        "192.0.2.1",
        "2001:db8::1",
        "2001:db8:1::9",
    }
