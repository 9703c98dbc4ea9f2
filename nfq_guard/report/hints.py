# SPDX-License-Identifier: MIT
"""Hints at the root cause of INVALID packets, each with what speaks for it in the recording.

A hint is not a finding. Events show which packets conntrack could not place, but not why: each rule
below looks for the pattern of a known cause, and states the numbers in which it was found.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from nfq_guard.finding import Reason
from nfq_guard.names import counted
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.report.timeline import Bars
from nfq_guard.telemetry.reader import ReadEvent

# A pattern in fewer packets is chance.
_LEAST_PACKETS: Final = 10
_LEAST_FLOWS: Final = 10
# After a flush, flows under load send their next packets within so many seconds.
_FLUSH_WITHIN_S: Final = 3
_BARS: Final = 90
# The busiest bar counts as a burst from this multiple of the middle one on.
_BURST: Final = 10


class Hint(NamedTuple):
    """A possible cause.

    Attributes:
        cause: What it may be.
        evidence: What speaks for it in these events.
        check: What would confirm or refute it.
    """

    cause: str
    evidence: str
    check: str

    @property
    def text(self) -> str:
        """All of it, in full sentences."""
        return f"{self.cause} {self.evidence} {self.check}"


def hints(summary: Summary, findings: Sequence[Mapping[str, str]]) -> list[Hint]:
    """The hints, in no particular order.

    Args:
        summary: The events.
        findings: The host's, as `doctor --format json` prints them.
    """
    found = [hint for rule in _RULES for hint in rule(summary)]
    return [*found, *_overload(summary, findings)]


def hints_of(events: Iterable[ReadEvent]) -> list[Hint]:
    """The hints in some events, such as those of one flow."""
    summary = Summary()
    for read in events:
        add_event(summary, read)
    return hints(summary, ())


def _packets(summary: Summary, *reasons: Reason) -> int:
    return sum(summary.reasons[reason].packets for reason in reasons if reason in summary.reasons)


def _told_apart(summary: Summary) -> str:
    """What restricts a count of flows, if there are more than are told apart."""
    return " of the flows that are told apart" if summary.others else ""


def _is_many(part: int, whole: int, share: float) -> bool:
    return part >= _LEAST_PACKETS and part >= share * whole


def _late_originals(summary: Summary) -> Iterator[Hint]:
    """Originals that a retransmission overtook come again with numbers that were seen."""
    found = summary.repetition
    if not _is_many(found.repeated, found.events, 0.2):
        return
    clocks = [f"{number:,} with {again}" for again, number in found.clocks.most_common()]
    places = [
        *(
            f"{number:,} in the {name or 'unknown'} direction"
            for name, number in found.directions.most_common()
        ),
        *(f"{number:,} in state {name or '-'}" for name, number in found.states.most_common()),
    ]
    yield Hint(
        "Late or repeated segments.",
        f"{found.repeated:,} of {found.events:,} segments outside the window carry a sequence "
        f"number that an earlier one of their flow had: {', '.join(clocks)}; "
        f"{', '.join(places)}; {found.nearest:,} to {found.furthest:,} bytes off.",
        "Capture on both interfaces: the same timestamp is that of a copy made on the way, a later "
        "one of a retransmission, an earlier one of an original that a retransmission overtook.",
    )


def _lost_window(summary: Summary) -> Iterator[Hint]:
    """A tracker that missed a window update, or its scale, finds data too far ahead."""
    packets = _packets(summary, Reason.SEQ_OVER)
    if _is_many(summary.beyond_unscaled, packets, 0.2):
        yield Hint(
            "Conntrack does not know the real window.",
            f"{summary.beyond_unscaled:,} of {packets:,} packets over bound I are over 65,535 "
            "bytes beyond a window that was never larger: it is young, or conntrack has not seen "
            "its scale in the handshake.",
            "Look whether these flows began before conntrack was loaded, and whether a proxy or "
            "another path carries their handshake.",
        )


def _unseen_side(summary: Summary) -> Iterator[Hint]:
    """Acknowledged data that was never seen took another path."""
    packets = _packets(summary, Reason.ACK_OVER)
    half = summary.states[Reason.BAD_TRANSITION, "SYN_SENT"]
    if _is_many(packets + half, summary.counts.packets, 0.3):
        yield Hint(
            "One direction takes another path.",
            f"{packets:,} packets acknowledge data that was not seen, and {half:,} continue a "
            "handshake whose answer was not seen.",
            "Compare the routes of both directions; direct server return and several uplinks do "
            "this.",
        )


def _scan(summary: Summary) -> Iterator[Hint]:
    """Scanners send one packet a flow, often with flags that no TCP combines."""
    flags = _packets(summary, Reason.BAD_FLAGS)
    flows = [flow.counts.packets for flow in summary.flows.values()]
    single = sum(packets == 1 for packets in flows)
    packets = summary.counts.packets - summary.others
    if flags >= _LEAST_PACKETS:
        yield Hint(
            "A scan.",
            f"{flags:,} packets have TCP flags that no TCP implementation sends together.",
            "Look at the sources: scans come from few, forged floods from many.",
        )
    elif len(flows) >= _LEAST_FLOWS and _is_many(single, packets, 0.8):
        yield Hint(
            "A scan or a forged flood.",
            f"{single:,} of {packets:,} packets{_told_apart(summary)} are the only one of their "
            "flow.",
            "Look at the sources: scans come from few, forged floods from many.",
        )


def _expired(summary: Summary) -> Iterator[Hint]:
    """The end of a connection whose entry is gone."""
    packets = _packets(summary, Reason.NO_ENTRY)
    ends = sum(
        count
        for (reason, flags), count in summary.flags.items()
        if reason == Reason.NO_ENTRY and ("F" in flags or "R" in flags) and "S" not in flags
    )
    if _is_many(ends, packets, 0.5):
        yield Hint(
            "Entries expire before their connections end.",
            f"{ends:,} of {packets:,} packets without an entry are a FIN or an RST: the end of a "
            "connection that conntrack had forgotten, or the answer to a stray packet.",
            "Compare the idle times of these services with the conntrack timeouts; see "
            "conntrack -S for early_drop.",
        )


def _flushed(summary: Summary) -> Iterator[Hint]:
    """Most flows miss their entries at one moment after a failover, a flush or a restart."""
    lost = summary.lost
    if summary.counts.first is None:
        return
    within = {
        second: sum(lost[second + later] for later in range(_FLUSH_WITHIN_S)) for second in lost
    }
    begin, flows = max(within.items(), key=lambda pair: (pair[1], -pair[0]), default=(0, 0))
    # What was so from the beginning on says nothing of a moment.
    is_moment = begin > summary.counts.first.timestamp() + _FLUSH_WITHIN_S
    if is_moment and flows >= _LEAST_FLOWS and 2 * flows >= lost.total():
        yield Hint(
            "The table was emptied: a failover, a flush or a restart.",
            f"{flows:,} of {counted(lost.total(), 'flow')} without an entry{_told_apart(summary)} "
            f"were met first within {_FLUSH_WITHIN_S} s of "
            f"{datetime.fromtimestamp(begin, UTC):%Y-%m-%d %H:%M:%S} UTC.",
            "Look in the logs of that moment for a change of the active router, conntrack -F, or a "
            "restart or reload of the firewall.",
        )


def _damaged(summary: Summary) -> Iterator[Hint]:
    """Wrong checksums come from one link, or from a NIC that has yet to compute them."""
    packets = _packets(summary, Reason.BAD_CHECKSUM)
    if _is_many(packets, summary.counts.packets, 0.05):
        places = [place for place in summary.checksum_places if place]
        where = f"all by {places[0]}" if len(places) == 1 else f"by {len(places)} interfaces"
        yield Hint(
            "A damaged link, or checksums that are not computed yet.",
            f"{packets:,} packets have a wrong checksum, {where}.",
            "Look at ethtool -S of the interface for errors, and at checksum offload of virtual "
            "interfaces.",
        )


def _overload(summary: Summary, findings: Sequence[Mapping[str, str]]) -> Iterator[Hint]:
    """Late processing on an overloaded CPU reorders and delays packets, in bursts."""
    said = [
        each["what"]
        for each in findings
        if str(each.get("id", "")).startswith("receive.") and each.get("status") in _BAD
    ]
    bars = summary.timeline.bars(_BARS)
    heights = [] if bars is None else sorted(sum(bar) for bar in bars.heights)
    flows = 0 if bars is None else _flows_in_busiest(summary, bars)
    is_burst = (
        len(heights) >= _LEAST_FLOWS
        and heights[-1] >= _LEAST_PACKETS
        and heights[-1] >= _BURST * max(heights[len(heights) // 2], 1)
        and flows >= _LEAST_FLOWS
    )
    if said or is_burst:
        evidence = []
        if is_burst and bars is not None:
            evidence.append(
                f"{heights[-1]:,.0f} packets of up to {flows:,} flows{_told_apart(summary)} came "
                f"within {bars.width:,} s, and {heights[len(heights) // 2]:,.0f} in the middle of "
                "all such times"
            )
        if said:
            evidence.append("the doctor found: " + "; ".join(said))
        yield Hint(
            "The receiver is overloaded.",
            "; ".join(evidence) + ".",
            "Look at /proc/net/softnet_stat, and spread the work by more receive queues or RPS: a "
            "full backlog delays and drops packets, whose retransmissions then come too late.",
        )


def _flows_in_busiest(summary: Summary, bars: Bars) -> int:
    """The flows with a packet before the end of the busiest bar and one after its beginning.

    A flow may have none in between, so there are at most so many.
    """
    sums = [sum(bar) for bar in bars.heights]
    begin = bars.start + sums.index(max(sums)) * bars.width
    end = begin + bars.width
    return sum(
        flow.counts.first.timestamp() < end and flow.counts.last.timestamp() >= begin
        for flow in summary.flows.values()
        if flow.counts.first is not None and flow.counts.last is not None
    )


_BAD: Final = frozenset({"warning", "problem"})
_RULES: Final[tuple[Callable[[Summary], Iterator[Hint]], ...]] = (
    _late_originals,
    _lost_window,
    _unseen_side,
    _scan,
    _expired,
    _flushed,
    _damaged,
)
