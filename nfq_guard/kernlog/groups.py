# SPDX-License-Identifier: MIT
"""The packets of a log by reason and flow, with what each reason means and what to do next."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypedDict, final

from nfq_guard.conntrack.log_text import is_conntrack_log, is_dropped, parse_ignored, parse_log
from nfq_guard.conntrack.states import (
    CLASS_ACK,
    CLASS_FIN,
    CLASS_NONE,
    CLASS_RST,
    CLASS_SYN,
    CLASS_SYNACK,
    FLAGS_PASS,
    SEGMENT_CLASS,
)
from nfq_guard.finding import Breach, Ignored, Reason
from nfq_guard.glossary import CONSEQUENCES, IGNORED, REASONS
from nfq_guard.kernlog.lines import LoggedPacket
from nfq_guard.kernlog.notices import Notice, Noticed
from nfq_guard.names import tcp_flags
from nfq_guard.seqno import Seq, distance
from nfq_guard.wire.tcp import highest_acknowledged

# Flows beyond this number are counted only by their reason.
MAX_FLOWS: Final = 10_000
# Reasons beyond this number are counted together: rules may have any number of prefixes.
MAX_CASES: Final = 1000

Verdict = Literal["invalid", "passes", "dropped", "depends on the kernel", "not said"]
Source = Literal["conntrack", "rule", "kernel"]

_CAPTURE: Final = (
    "A capture of the flow shows the numbers: tcpdump -i any -w FILE host {src}, then "
    "nfq-guard replay FILE."
)
_ASK_CONNTRACK: Final = (
    "Let conntrack log its own reasons from now on: sysctl "
    "net.netfilter.nf_conntrack_log_invalid=255."
)
_INVALID_RULE: Final = (
    "By its prefix, the rule is one for packets that conntrack calls INVALID. The line does not "
    "say why conntrack does so."
)
_RULE_LOGGED: Final = (
    "A rule of the packet filter logged it, with a prefix of its own. The line does not say why "
    "the rule matched, nor whether conntrack called the packet INVALID."
)
_TRACED: Final = (
    "A TRACE rule follows the packet: each rule and policy that it meets has a line, so that these "
    "are lines, not packets. They show its way, not whether conntrack called it INVALID."
)
_KINDS: Final = {
    CLASS_SYN: "Its flags open a connection.",
    CLASS_SYNACK: "Its flags answer a SYN.",
    CLASS_FIN: "Its flags end one direction of a connection.",
    CLASS_ACK: "Its flags belong to a connection that is open already.",
    CLASS_RST: "Its flags reset a connection.",
    CLASS_NONE: "It has no flag that a segment of a connection has.",
}
_BAD_FLAGS: Final = "Conntrack calls every packet that it tracks with these flags INVALID."
_UNKNOWN_TEXT: Final = (
    "Conntrack logged it; the text is not one of a known kernel, or was cut off before it gave the "
    "reason."
)
_DROPPED_TEXT: Final = (
    "A helper, such as that of FTP or SIP, dropped the packet for the reason in its text, after "
    "the rules had let it pass. It was not INVALID, and no rule or policy can save such packets."
)
_NO_HELPER: Final = (
    "If nothing needs the helper, remove the rule that assigns it (-j CT --helper, or ct helper "
    "set in nftables); where net.netfilter.nf_conntrack_helper is 1, set it to 0."
)
_OVERSHOOT: Final = (
    "It goes beyond the room that the receiver offered, by less than one window. Kernels before "
    "6.1 call it INVALID; from 6.1 on it passes with its flow."
)
# Measured on 5.10, 6.1, 6.12 and 6.18 (kernel.md 1.15).
_UDPLITE: Final = ("udplite", "136")
_MISTAKEN: Final = (
    "Conntrack computes the checksum of UDP-Lite with the protocol number of UDP, so that it finds "
    "every correct one wrong. The packet is not damaged."
)
_EXEMPT: Final = (
    "Exempt UDP-Lite (protocol 136) from rules that drop INVALID packets, or from conntrack: "
    "iptables -t raw -A PREROUTING -p udplite -j NOTRACK. Its receiver checks the checksum."
)


class LogBreachRecord(TypedDict):
    """The bound that a logged packet broke.

    Attributes:
        bound: The bound.
        actual: Sequence number of the packet that broke it.
        limit: The last sequence number that passes.
        distance: Bytes from `limit` to `actual`.
    """

    bound: Reason
    actual: int
    limit: int
    distance: int


class LoggedRecord(TypedDict):
    """The packets of one flow that were logged for one reason.

    Attributes:
        source: Who wrote the text: conntrack itself or a rule of the packet filter, of a packet
            that the line has; or the kernel, of packets or lines that it only counts.
        text: Conntrack's text or the rule's prefix, of the first packet; else the kernel's.
        verdict: Conntrack's verdict by the line.
        reason: Why conntrack calls the packets INVALID; null if the line does not prove it.
        ignored: Why the packets pass without being taken into account; null for other packets.
        packets: How many there are; of lines that are left out or lost, how many lines.
        first_line: Line of the first.
        last_line: Line of the last.
        proto: Protocol; null for packets of flows beyond those that are listed, and where the
            kernel only counts.
        src: Source address; null as `proto`.
        sport: Source port; null without one.
        dst: Destination address; null as `proto`.
        dport: Destination port; null without one.
        tcp_flags: TCP flags; null if the line lacks them, and for a reason of conntrack.
        breach: The broken bound, of the first packet; null if the line lacks it.
        meaning: What the reason means.
        next: The recommended next step.
    """

    source: Source
    text: str
    verdict: Verdict
    reason: Reason | None
    ignored: Ignored | None
    packets: int
    first_line: int
    last_line: int
    proto: str | None
    src: str | None
    sport: int | None
    dst: str | None
    dport: int | None
    tcp_flags: str | None
    breach: LogBreachRecord | None
    meaning: str
    next: str


@final
class Case(NamedTuple):
    """What one line proves, without the packet's own numbers.

    Attributes:
        source: As in `LoggedRecord`.
        prefix: Prefix of the rule, the text of a helper, or an unknown text of conntrack.
        verdict: As in `LoggedRecord`.
        reason: As in `LoggedRecord`.
        ignored: As in `LoggedRecord`.
        flags: TCP flags of a packet that a rule logged.
        mistaken: Whether conntrack computes the checksum that it found wrong otherwise than the
            protocol does.
    """

    source: Source
    prefix: str
    verdict: Verdict
    reason: Reason | None
    ignored: Ignored | None
    flags: int | None
    mistaken: bool = False


# Cannot be the prefix of a rule, because a line cannot contain it.
_MORE_CASES: Final = Case("rule", "\n", "not said", None, None, None)


def case_of(packet: LoggedPacket) -> Case | None:
    """The facts that a line proves; None for an additional line of conntrack without a reason."""
    text = packet.text
    if not is_conntrack_log(text):
        flags = packet.flags
        bad = flags is not None and not FLAGS_PASS[flags]
        return Case("rule", text, "not said", Reason.BAD_FLAGS if bad else None, None, flags)
    if is_dropped(text):
        return Case("conntrack", text, "dropped", None, None, None)
    ignored = parse_ignored(text)
    logged = parse_log(text, old_segments_pass=False)
    if ignored is not None and logged is not None:
        return Case("conntrack", "", "depends on the kernel", logged.reason, ignored, None)
    if ignored is not None:
        return Case("conntrack", "", "passes", None, ignored, None)
    if logged is None:
        return None
    if logged.reason is None:
        return Case("conntrack", text, "not said", None, None, None)
    mistaken = logged.reason is Reason.BAD_CHECKSUM and packet.proto in _UDPLITE
    return Case("conntrack", "", "invalid", logged.reason, None, None, mistaken)


def breach_of_line(packet: LoggedPacket) -> Breach | None:
    """The bound that conntrack's text names, with the packet's number from the same line.

    None if the numbers do not break it, as with a helper that shifts sequence numbers.
    """
    logged = parse_log(packet.text, old_segments_pass=False)
    if logged is None or logged.limit is None or packet.seq is None:
        return None
    if logged.reason is Reason.SEQ_OVER:
        actual = Seq(packet.seq)
    elif logged.reason is Reason.ACK_OVER and packet.ack is not None:
        actual = highest_acknowledged(packet.options, Seq(packet.ack))
    else:
        return None
    beyond = distance(actual, logged.limit)
    return Breach(logged.reason, actual, logged.limit, beyond) if beyond > 0 else None


class _Flow(NamedTuple):
    proto: str
    src: str
    sport: int | None
    dst: str
    dport: int | None


@final
class _Group:
    def __init__(self, packet: LoggedPacket) -> None:
        self.first = packet
        self.last_line = packet.line
        self.packets = 0


@final
class Groups:
    """The packets of a log by proven facts and by flow; bounded."""

    def __init__(self, max_flows: int = MAX_FLOWS, max_cases: int = MAX_CASES) -> None:
        self._cases: dict[Case, dict[_Flow | None, _Group]] = {}
        self._max_flows = max_flows
        self._max_cases = max_cases
        self._flows = 0

    def add(self, packet: LoggedPacket) -> None:
        """Count one packet."""
        case = case_of(packet)
        if case is None:
            return
        flows = self._cases.get(case)
        if flows is None:
            if len(self._cases) >= self._max_cases:
                case = _MORE_CASES
            flows = self._cases.setdefault(case, {})
        flow: _Flow | None = _Flow(packet.proto, packet.src, packet.sport, packet.dst, packet.dport)
        if case is _MORE_CASES or (flow not in flows and self._flows >= self._max_flows):
            flow = None
        group = flows.get(flow)
        if group is None:
            group = flows[flow] = _Group(packet)
            self._flows += 1
        group.packets += packet.times
        group.last_line = packet.line

    def records(self) -> list[LoggedRecord]:
        """One record a case and flow, sorted by number of packets."""
        cases = sorted(
            self._cases.items(),
            key=lambda item: -sum(group.packets for group in item[1].values()),
        )
        return [
            _record(case, flow, group)
            for case, flows in cases
            for flow, group in sorted(flows.items(), key=lambda item: -item[1].packets)
        ]


def _record(case: Case, flow: _Flow | None, group: _Group) -> LoggedRecord:
    breach = breach_of_line(group.first) if flow is not None else None
    return LoggedRecord(
        source=case.source,
        text=group.first.text if case is not _MORE_CASES else "",
        verdict=case.verdict,
        reason=case.reason,
        ignored=case.ignored,
        packets=group.packets,
        first_line=group.first.line,
        last_line=group.last_line,
        proto=None if flow is None else flow.proto,
        src=None if flow is None else flow.src,
        sport=None if flow is None else flow.sport,
        dst=None if flow is None else flow.dst,
        dport=None if flow is None else flow.dport,
        tcp_flags=None if case.flags is None else tcp_flags(case.flags),
        breach=None
        if breach is None
        else LogBreachRecord(
            bound=breach.bound,
            actual=breach.actual,
            limit=breach.limit,
            distance=breach.distance,
        ),
        meaning=_meaning(case),
        next=_next(case, "ADDRESS" if flow is None else flow.src),
    )


def _meaning(case: Case) -> str:
    if case.source == "rule":
        kind = ""
        if case.reason is not None:
            kind = f"{REASONS[case.reason].sentences} {_BAD_FLAGS} "
        elif case.flags is not None:
            kind = f"{_KINDS[SEGMENT_CLASS[case.flags]]} "
        if case.prefix.startswith("TRACE: "):
            return kind + _TRACED
        return kind + (_INVALID_RULE if "invalid" in case.prefix.lower() else _RULE_LOGGED)
    if case.verdict == "dropped":
        return _DROPPED_TEXT
    if case.mistaken:
        return _MISTAKEN
    if case.reason is not None:
        return _OVERSHOOT if case.ignored is not None else REASONS[case.reason].sentences
    return _UNKNOWN_TEXT if case.ignored is None else IGNORED[case.ignored]


def _next(case: Case, src: str) -> str:
    capture = _CAPTURE.format(src=src)
    if case.source == "rule":
        return f"{_ASK_CONNTRACK} {capture}"
    if case.verdict == "dropped":
        return _NO_HELPER
    if case.mistaken:
        return _EXEMPT
    if case.verdict == "passes":
        return "Nothing: the packet was forwarded with its flow."
    return capture if case.reason is None else f"{CONSEQUENCES[case.reason].advice} {capture}"


def notice_records(notices: Mapping[Notice, Noticed]) -> list[LoggedRecord]:
    """One record a kind of line without a packet."""
    return [
        LoggedRecord(
            source="kernel",
            text=noticed.text,
            verdict="dropped" if notice.dropped else "not said",
            reason=None,
            ignored=None,
            packets=noticed.count,
            first_line=noticed.first_line,
            last_line=noticed.last_line,
            proto=None,
            src=None,
            sport=None,
            dst=None,
            dport=None,
            tcp_flags=None,
            breach=None,
            meaning=notice.meaning,
            next=notice.next,
        )
        for notice, noticed in notices.items()
    ]
