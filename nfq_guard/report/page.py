# SPDX-License-Identifier: MIT
"""Renders the page: timeline, reasons, distances, flows, rules and policy trials."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from nfq_guard import __version__
from nfq_guard.finding import Reason
from nfq_guard.glossary import REASONS
from nfq_guard.report.charts import Bar, stacked_bars
from nfq_guard.report.summary import DISTANCE_CLASSES, FlowName, FlowSummary, Summary

_FLOWS_SHOWN: Final = 25
_BUCKETS_MAX: Final = 60
# Possible widths of a bar of the timeline, in seconds.
_WIDTHS: Final = (1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600, 7200, 21_600, 86_400)

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5a6472;--line:#d8dee4;--paper:#fff;
--card:#f6f8fa;--drop:#c9392c;--accept:#2f7fc1}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--dim:#9aa4b1;--line:#333b45;
--paper:#14181d;--card:#1c2229;--drop:#e5645a;--accept:#5aa5e0}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
p{margin:.3rem 0 .8rem}.dim,caption,.tick{color:var(--dim);fill:var(--dim)}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.card{background:var(--card);border-radius:8px;padding:.7rem 1.1rem;min-width:8rem}
.card b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top}th{font-weight:600;color:var(--dim)}
td.n,th.n{text-align:right}code{font:.92em ui-monospace,monospace;white-space:nowrap}
svg{width:100%;height:auto}.grid{stroke:var(--line)}.tick{font-size:11px}
.drop{fill:var(--drop)}.accept{fill:var(--accept)}
.key::before{content:"";display:inline-block;width:.8em;height:.8em;margin-right:.4em}
.key.d::before{background:var(--drop)}.key.a::before{background:var(--accept)}
.wide{overflow-x:auto}
"""


def render(
    summary: Summary, *, title: str, skipped: str = "", trial: Mapping[str, Any] | None = None
) -> str:
    """The page as HTML.

    Args:
        summary: The aggregated events.
        title: Title of the page.
        skipped: Which lines were skipped, in a few words; empty for none.
        trial: Result of one or two policies (`whatif.result.result`).
    """
    body = [_head(summary, title, skipped)]
    if summary.packets:
        body += [
            _timeline(summary),
            _reasons(summary),
            _distances(summary),
            _flows(summary),
            _rules(summary),
        ]
    else:
        body.append("<p>No packet was recorded.</p>")
    if trial is not None:
        body.append(_trial(trial))
    body.append(
        f'<p class="dim">Made by nfq_guard {escape(__version__)}. Actions <code>allow</code> are '
        "counted by the daemon but not recorded, so they are not in this page.</p>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}: INVALID packets</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _head(summary: Summary, title: str, skipped: str) -> str:
    span = "no events"
    if summary.first is not None and summary.last is not None:
        span = f"{_minute(summary.first)} to {_minute(summary.last)} UTC"
    modes = ", ".join(sorted(summary.modes))
    line = " · ".join(text for text in (span, modes, skipped) if text)
    cards = [
        (summary.packets, "INVALID packets"),
        (summary.drops, "the policy drops"),
        (summary.dropped, "were dropped"),
        (len(summary.flows), "flows" if not summary.others else "flows, and more"),
    ]
    shown = "".join(f'<div class="card"><b>{n:,}</b>{escape(what)}</div>' for n, what in cards)
    return (
        f"<h1>INVALID packets: {escape(title)}</h1>"
        f'<p class="dim">{escape(line)}</p>'
        f'<div class="cards">{shown}</div>'
    )


def _minute(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _timeline(summary: Summary) -> str:
    seconds = sorted({second for second, _ in summary.seconds})
    first, last = seconds[0], seconds[-1]
    width = next((w for w in _WIDTHS if (last - first) / w < _BUCKETS_MAX), _WIDTHS[-1])
    start = first - first % width
    count = min((last - start) // width + 1, 10 * _BUCKETS_MAX)
    buckets = [[0, 0] for _ in range(count)]
    for (second, drops), packets in summary.seconds.items():
        buckets[min((second - start) // width, count - 1)][0 if drops else 1] += packets
    shape = "%H:%M:%S" if width < 60 else "%H:%M" if width < 21_600 else "%m-%d"
    bars = [
        Bar(
            label=datetime.fromtimestamp(start + index * width, UTC).strftime(shape),
            parts=(drops, accepts),
            title=f"{drops} dropped, {accepts} accepted",
        )
        for index, (drops, accepts) in enumerate(buckets)
    ]
    return (
        f"<h2>When</h2><p>Packets in each {_span(width)}: "
        '<span class="key d">the policy drops</span> &nbsp; '
        '<span class="key a">it accepts</span></p>'
        + stacked_bars(bars, ("drop", "accept"), "packets over time")
    )


def _span(seconds: int) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = seconds // length
            return unit if number == 1 else f"{number} {unit}s"
    return "second" if seconds == 1 else f"{seconds} seconds"


def _phrase(reason: str) -> str:
    """The meaning of `reason`; empty if this version has no such reason."""
    try:
        return REASONS[Reason(reason)].phrase
    except ValueError:
        return ""


def _reasons(summary: Summary) -> str:
    rows = []
    for reason, packets in summary.reasons.most_common():
        drops = summary.reason_drops[reason]
        nats = ", ".join(
            f"{nat} {summary.nats[nat, reason]:,}"
            for nat in sorted({nat for nat, other in summary.nats if other == reason})
        )
        rows.append(
            (
                f"<code>{escape(reason)}</code>",
                escape(_phrase(reason)),
                f"{packets:,}",
                f"{drops:,}",
                escape(nats),
            )
        )
    return "<h2>Why</h2>" + _table(
        ("reason", "which is", "#packets", "#dropped by policy", "translation"), rows
    )


def _distances(summary: Summary) -> str:
    if not summary.distances:
        return ""
    bounds = sorted({bound for bound, _ in summary.distances})
    parts = ["<h2>How far off</h2><p>Bytes beyond the bound, by powers of two.</p>"]
    for bound in bounds:
        counts = [summary.distances[bound, power] for power in range(1, DISTANCE_CLASSES)]
        last = max(power for power, packets in enumerate(counts) if packets)
        bars = [
            Bar(
                label=_binary(1 << power),
                parts=(packets,),
                title=f"{1 << power:,} to {(2 << power) - 1:,} bytes: {packets} packets",
            )
            for power, packets in enumerate(counts[: max(last + 1, 17)])
        ]
        chart = stacked_bars(bars, ("accept",), f"distances of {bound}")
        parts.append(f"<p><code>{escape(bound)}</code></p>{chart}")
    return "".join(parts)


def _binary(number: int) -> str:
    for unit, scale in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
        if number >= scale:
            return f"{number // scale}{unit}"
    return str(number)


def _flows(summary: Summary) -> str:
    def most(item: tuple[FlowName, FlowSummary]) -> tuple[int, int]:
        return (-item[1].packets, -item[1].drops)

    shown = sorted(summary.flows.items(), key=most)[:_FLOWS_SHOWN]
    rows = [
        (
            f"<code>{escape(one)}</code> &harr; <code>{escape(other)}</code> {escape(proto)}",
            escape(", ".join(f"{reason} {n:,}" for reason, n in flow.reasons.most_common())),
            escape(flow.nat),
            escape(flow.state or "-"),
            f"{flow.packets:,}",
            f"{flow.drops:,}",
            f"{flow.furthest:,}" if flow.furthest else "",
        )
        for (proto, one, other), flow in shown
    ]
    rest = len(summary.flows) - len(shown)
    more = f" The {rest:,} others are not shown." if rest else ""
    beyond = f" {summary.others:,} packets of further flows are not told apart."
    return (
        f"<h2>Which flows</h2><p>The busiest first.{more}{beyond if summary.others else ''}</p>"
        + _table(
            ("flow", "reasons", "nat", "state", "#packets", "#dropped by policy", "#furthest off"),
            rows,
        )
    )


def _rules(summary: Summary) -> str:
    rows = [
        (f"<code>{escape(rule)}</code>", escape(action), f"{packets:,}")
        for (rule, action), packets in summary.rules.most_common()
    ]
    return "<h2>Which rules decided</h2>" + _table(("rule", "action", "#packets"), rows)


def _trial(trial: Mapping[str, Any]) -> str:
    """The drops of each policy, and the difference of two."""
    policies = trial["policies"]
    rows = [
        (
            f"<code>{escape(each['policy'])}</code>",
            _estimated(each),
            f"{each['passes']:,}",
            f"{each['false_positives']['packets']:,}",
            f"{each['unknown']:,}",
            f"{each['false_negatives']['packets']:,}",
            escape(", ".join(f"{why} {n:,}" for why, n in each["drops_by_reason"].items())),
        )
        for each in policies
    ]
    parts = [
        "<h2>What these policies would have done</h2>",
        "<p>A drop in a flow that lived on is a false positive. An accepted packet that was "
        "followed by an RST is a false negative.</p>",
        _table(
            (
                "policy",
                "#drops",
                "#accepts",
                "#drops in flows that lived on",
                "#drops with unknown outcome",
                "#accepts followed by an RST",
                "drops by reason",
            ),
            rows,
        ),
    ]
    if trial["difference"] is not None:
        for letter, each in zip("ab", policies, strict=True):
            alone = trial["difference"][f"only_{letter}_drops"]
            parts.append(
                f"<p>Only <code>{escape(each['policy'])}</code> would drop {_estimated(alone)}"
                f"{':' if alone['drops'] else '.'}</p>"
            )
            if alone["drops"]:
                parts.append(_table(("flow", "#packets", ""), _alone(alone)))
    return "".join(parts)


def _estimated(drops: Mapping[str, Any]) -> str:
    """The number of drops, with its bounds where it is an estimate."""
    least, most = drops["least_drops"], drops["most_drops"]
    if least == most:
        return f"{drops['drops']:,}"
    return f"about {drops['drops']:,} ({least:,} to {most:,})"


def _alone(alone: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    lived = alone["false_positives"]["flows"]
    for flow, packets in alone["drops_by_flow"].items():
        yield f"<code>{escape(flow)}</code>", f"{packets:,}", "lived on" if flow in lived else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; a head with the prefix # marks a numeric column. Cells must be HTML."""
    numeric = [head.startswith("#") for head in heads]
    top = "".join(
        f"<th{' class=n' if number else ''}>{escape(head.lstrip('#'))}</th>"
        for head, number in zip(heads, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if number else ''}>{cell}</td>"
            for cell, number in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )
