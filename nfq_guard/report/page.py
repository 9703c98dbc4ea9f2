# SPDX-License-Identifier: MIT
"""The page of recorded events: the answer first, then what it rests on."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nfq_guard import __version__
from nfq_guard.finding import Reason
from nfq_guard.glossary import CAUSES, REASONS, Cause
from nfq_guard.names import counted, endpoint
from nfq_guard.outfile import output
from nfq_guard.report.charts import distances, timeline
from nfq_guard.report.hints import Hint, hints
from nfq_guard.report.html import data_island, render
from nfq_guard.report.island import flow_data
from nfq_guard.report.summary import (
    Counts,
    Fate,
    FlowName,
    FlowSummary,
    Summary,
)
from nfq_guard.telemetry.reader import ReadEvent, time_of
from nfq_guard.whatif.result import PolicyRecord, TrialRecord

_FLOWS_LISTED: Final = 20
_SERVICES_LISTED: Final = 10
_RESETS_LISTED: Final = 8
_RULES_LISTED: Final = 20
# The status of a finding that needs no attention.
_FINE: Final = "ok"
# Packets without a flow, as those of a scan: the RST of a host that has no such connection.
_FLOWLESS: Final = (Reason.NO_ENTRY, Reason.BAD_FLAGS)
# Names with their numbers in one cell of a table.
_LISTED: Final = 3


def write_page(
    path: Path,
    summary: Summary,
    *,
    title: str,
    trial: TrialRecord | None = None,
    gaps: Sequence[str] = (),
    findings: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the page of the events that `add_event` has added to `summary`.

    Args:
        path: The file; replaced only by a whole page.
        summary: The events.
        title: Title of the page.
        trial: What policies would have done to the same packets.
        gaps: What is missing from the recording, a sentence each.
        findings: The host's, as `doctor --format json` prints them.

    Raises:
        UsageError: The file cannot be opened.
        OutputError: It cannot be written to its end.
        UnavailableError: The package jinja2 is not installed.
    """
    text = page(summary, title=title, trial=trial, gaps=gaps, findings=findings)
    with output(path, str(path)) as file:
        file.write(text.encode())


def page(
    summary: Summary,
    *,
    title: str,
    trial: TrialRecord | None = None,
    gaps: Sequence[str] = (),
    findings: Sequence[Mapping[str, str]] = (),
) -> str:
    """The page as HTML; arguments as for `write_page`."""
    resets = sorted(summary.resets, key=lambda read: read.first)[:_RESETS_LISTED]
    policies = [] if trial is None else trial["policies"]
    busiest = sorted(summary.flows.items(), key=_busiest)
    services = sorted(summary.services.items(), key=lambda named: -named[1].packets)
    ranked = sorted(summary.reasons.items(), key=lambda named: -named[1].packets)
    values = {
        "title": f"{title}: INVALID packets",
        "name": title,
        "subtitle": _subtitle(summary),
        "verdict": _verdict(summary),
        "answers": _answers(summary, policies),
        "gaps": gaps,
        "policies": [_policy(each) for each in policies],
        "differences": _differences(trial),
        "timeline": timeline(summary, days=_has_days(summary)),
        "resets": [_reset(read) for read in resets],
        "resets_left_out": _left_out(
            summary.counts.resets, sum(read.event.count for read in resets)
        ),
        "reasons": [_reason(name, counts) for name, counts in ranked],
        "hints": [*hints(summary, findings), *_causes(summary)],
        "services": [_service(name, counts) for name, counts in services[:_SERVICES_LISTED]],
        "services_left_out": _left_out(len(services), _SERVICES_LISTED),
        "service_others": _number(summary.service_others) if summary.service_others else "",
        "distances": distances(summary),
        "flows": [_flow(name, flow) for name, flow in busiest[:_FLOWS_LISTED]],
        "flow_total": _number(len(busiest)),
        "others": _number(summary.others) if summary.others else "",
        "rules": [
            (rule, action, _number(packets))
            for (rule, action), packets in summary.rules.most_common(_RULES_LISTED)
        ],
        "findings": [_finding(each) for each in findings if each.get("status") != _FINE],
        "findings_fine": [_finding(each) for each in findings if each.get("status") == _FINE],
        "version": __version__,
        "data": data_island(flow_data(busiest, days=_has_days(summary))),
    }
    return render("events.html.jinja", values)


def _number(number: float) -> str:
    return f"{number:,.0f}"


def _left_out(number: int, listed: int) -> str:
    return _number(number - listed) if number > listed else ""


def _moment(when: datetime | None) -> str:
    return "-" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _precise(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _has_days(summary: Summary) -> bool:
    """Whether times need their date."""
    first, last = summary.counts.first, summary.counts.last
    return first is not None and last is not None and first.date() != last.date()


def _share(part: int, whole: int) -> str:
    """A share in words that round neither to all nor to nothing."""
    if part == whole:
        return "all"
    percent = 100 * part / whole
    if percent < 1:
        return "under 1 %"
    return "over 99 %" if percent > 99 else f"{percent:.0f} %"


def _subtitle(summary: Summary) -> str:
    counts = summary.counts
    if counts.first is None:
        return "no events"
    flows = f"{len(summary.flows):,} flows" + (" and more" if summary.others else "")
    return ", ".join(
        (
            f"{_moment(counts.first)} to {_moment(counts.last)} UTC",
            " and ".join(sorted(summary.modes)),
            counted(counts.packets, "packet"),
            flows if len(summary.flows) != 1 or summary.others else "1 flow",
        )
    )


def _verdict(summary: Summary) -> dict[str, str]:
    """Whether there is a problem."""
    counts = summary.counts
    escaped, dropped = counts.fates[Fate.ESCAPED], counts.fates[Fate.DROPPED]
    if not counts.packets:
        return {
            "level": "none",
            "headline": "No packet was recorded.",
            "sentence": "Nothing can be said about this host.",
        }
    flowless = sum(summary.reasons[each].resets for each in _FLOWLESS if each in summary.reasons)
    if counts.resets and not escaped and flowless == counts.resets:
        return {
            "level": "risk",
            "headline": "Perhaps: RSTs answered packets without a flow.",
            "sentence": f"{counted(counts.resets, 'RST')} answered INVALID packets that got "
            "through. None of these had a flow: whether a connection ended is unknown, and a scan "
            "causes such RSTs too.",
        }
    if counts.resets:
        return {
            "level": "harm",
            "headline": "Yes: connections were reset.",
            "sentence": f"{counted(counts.resets, 'RST')} answered INVALID packets that got "
            f"through. {counted(escaped, 'packet')} of translated flows got through untranslated.",
        }
    if escaped:
        return {
            "level": "risk",
            "headline": "Yes: packets got through untranslated.",
            "sentence": f"{counted(escaped, 'INVALID packet')} of translated flows. Each can make "
            "its receiver reset a connection; no such reset was seen here.",
        }
    # A packet without a flow may be of a translation that has expired.
    untold = f"{_number(summary.untold)} of unknown translation" if summary.untold else ""
    if dropped:
        known = "is known to" if untold else "could"
        return {
            "level": "calm",
            "headline": f"No: what {known} do harm was dropped.",
            "sentence": f"{_number(dropped)} of {counted(counts.packets, 'INVALID packet')} "
            f"{'was' if dropped == 1 else 'were'} dropped, and "
            f"{untold or 'none of a translated flow'} got through.",
        }
    packets = counted(counts.packets, "INVALID packet")
    if untold:
        return {
            "level": "calm",
            "headline": "No: no packet is known to be of a translated flow.",
            "sentence": f"{packets} got through, {untold}.",
        }
    return {
        "level": "calm",
        "headline": "No: no packet of a translated flow is among them.",
        "sentence": f"{packets} got through as a host without translation would pass them.",
    }


def _answers(summary: Summary, policies: Sequence[PolicyRecord]) -> list[tuple[str, str, str]]:
    """Questions with their answers: since when, which service, which reason, which policy."""
    counts = summary.counts
    if not counts.packets:
        return []
    escaped = counts.fates[Fate.ESCAPED]
    since, until = (
        (summary.escaped_since, summary.escaped_until) if escaped else (counts.first, counts.last)
    )
    kind = Fate.ESCAPED if escaped else None

    def weight(each: Counts) -> int:
        return each.packets if kind is None else each.fates[kind]

    total = weight(counts)
    what = "of the packets" if kind is None else "of what got through untranslated"
    service, of_service = max(summary.services.items(), key=lambda named: weight(named[1]))
    reason, of_reason = max(summary.reasons.items(), key=lambda named: weight(named[1]))
    found = [
        ("Since when?", _moment(since), f"until {_moment(until)}, UTC"),
        _which_service(summary, service, weight(of_service), total, what),
        ("Which reason?", reason, f"{_phrase(reason)}: {_share(weight(of_reason), total)} {what}"),
    ]
    if policies:
        said = [f"{each['policy'].removeprefix('preset:')} {_estimated(each)}" for each in policies]
        found.append(("What would each policy drop?", said[0], "; ".join(said[1:])))
    return found


def _which_service(
    summary: Summary, busiest: str, packets: int, total: int, what: str
) -> tuple[str, str, str]:
    """The answer for the service that has most of the packets among those that are told apart."""
    number = counted(len(summary.services), "service")
    others = summary.service_others
    services = (
        f"{number} told apart, and {counted(others, 'packet')} of further ones"
        if others
        else f"{number} in all"
    )
    if others > packets:
        return "Which service?", "cannot be told", services
    return "Which service?", busiest, f"{_share(packets, total)} {what}; {services}"


def _phrase(reason: str) -> str:
    """The meaning of `reason`; empty if this version has no such reason."""
    try:
        return REASONS[Reason(reason)].phrase
    except ValueError:
        return ""


def _counts(counts: Counts) -> dict[str, Any]:
    fates = counts.fates
    return {
        "packets": _number(counts.packets),
        "shares": [
            (fate.name.lower(), f"{100 * fates[fate] / counts.packets:.2f}" if fates[fate] else "")
            for fate in Fate
        ],
        "escaped": _number(fates[Fate.ESCAPED]),
        "dropped": _number(fates[Fate.DROPPED]),
        "drops": _number(counts.drops),
        "resets": _number(counts.resets),
        "reasons": _listed(counts.reasons),
        "nats": _listed(counts.nats),
        "since": _moment(counts.first),
        "last": _moment(counts.last),
    }


def _listed(numbers: Mapping[str, int]) -> str:
    """The largest numbers with their names."""
    ranked = sorted(numbers.items(), key=lambda named: -named[1])
    shown = [f"{name} {number:,}" for name, number in ranked[:_LISTED]]
    if len(ranked) > _LISTED:
        shown.append(f"and {len(ranked) - _LISTED} more")
    return ", ".join(shown)


def _reason(name: str, counts: Counts) -> dict[str, Any]:
    return _counts(counts) | {"name": name, "phrase": _phrase(name)}


def _causes(summary: Summary) -> Iterator[Hint]:
    """The causes that the events tell, the most frequent first."""

    def packets_of(named: tuple[Cause, tuple[int, int]]) -> int:
        return -named[1][0]

    least = "at least " if summary.others else ""
    for cause, (packets, flows) in sorted(summary.causes.items(), key=packets_of):
        meaning = CAUSES[cause]
        yield Hint(
            meaning.phrase,
            f"{counted(packets, 'packet')} of {least}{counted(flows, 'flow')}. {meaning.sentences}",
            "nfq-guard explain on a capture of such a flow",
        )


def _service(name: str, counts: Counts) -> dict[str, Any]:
    return _counts(counts) | {"name": name}


def _busiest(named: tuple[FlowName, FlowSummary]) -> tuple[int, int]:
    counts = named[1].counts
    return -counts.packets, -counts.fates[Fate.ESCAPED]


def _flow(name: FlowName, flow: FlowSummary) -> dict[str, Any]:
    proto, one, other = name
    return _counts(flow.counts) | {
        "proto": proto,
        "one": one,
        "other": other,
        "service": flow.service,
        "furthest": _number(flow.furthest) if flow.furthest else "",
    }


def _reset(read: ReadEvent) -> dict[str, str]:
    event = read.event
    cause = event.caused_by
    assert cause is not None  # noqa: S101 - `summary.resets` has no other
    return {
        "at": _precise(read.first) + (f" \u00d7{event.count:,}" if event.count > 1 else ""),
        "src": endpoint(event.src, event.sport),
        "dst": endpoint(event.dst, event.dport),
        "seq": str(event.seq),
        "cause_at": _precise(time_of(cause.timestamp)),
        "reason": cause.reason,
        "delay": f"{cause.delay_us / 1000:,.1f} ms",
    }


def _finding(found: Mapping[str, str]) -> dict[str, str]:
    return {key: str(found.get(key, "")) for key in ("id", "status", "what", "todo")}


def _policy(each: PolicyRecord) -> dict[str, str]:
    about = "" if each["fates_exact"] else "about "
    return {
        "policy": each["policy"],
        "drops": _estimated(each),
        "saved": about + _number(each["followed_by_rst"]),
        "escapes": _number(each["translated_passes"]),
        "lived": about + _number(each["false_positives"]["packets"]),
        "missed": about + _number(each["false_negatives"]["packets"]),
        "unknown": about + _number(each["unknown"] + each["confirmed_drops"]),
        "heals": counted(each["heal_flows"], "flow") if each["heal_flows"] else "",
        "reasons": _listed(each["drops_by_reason"]),
    }


def _estimated(drops: Mapping[str, Any]) -> str:
    """The number of drops, with its bounds where it is an estimate."""
    least, most = drops["least_drops"], drops["most_drops"]
    if least == most:
        return _number(drops["drops"])
    return f"about {drops['drops']:,} ({least:,} to {most:,})"


def _differences(trial: TrialRecord | None) -> list[dict[str, Any]]:
    """What each of two policies drops alone."""
    difference = None if trial is None else trial["difference"]
    if trial is None or difference is None:
        return []
    found = []
    for policy, alone in zip(
        trial["policies"], (difference["only_a_drops"], difference["only_b_drops"]), strict=True
    ):
        lived = alone["false_positives"]["flows"]
        flows = [
            (flow, _number(packets), "continued" if flow in lived else "")
            for flow, packets in alone["drops_by_flow"].items()
        ]
        found.append({"policy": policy["policy"], "drops": _estimated(alone), "flows": flows})
    return found
