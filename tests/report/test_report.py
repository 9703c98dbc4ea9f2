# SPDX-License-Identifier: MIT
"""The page of recorded events."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TextIO

import pytest

from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.glossary import REASONS
from nfq_guard.report import summary
from nfq_guard.report.charts import Bar, stacked_bars
from nfq_guard.report.page import render
from nfq_guard.report.summary import FlowSummary, Summary, add_event
from nfq_guard.telemetry.reader import EventReader
from tests.support import captures


def event(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of an event
    fields: dict[str, Any] = {
        "event": "packet_judged",
        "timestamp": "2026-11-23T02:00:00.000001Z",
        "mode": "dry-run",
        "queue": 0,
        "hook": "PREROUTING",
        "in": "eth0",
        "out": "",
        "mark": 0,
        "family": 4,
        "proto": "tcp",
        "src": "10.244.0.2",
        "dst": "192.0.2.2",
        "sport": 8080,
        "dport": 40000,
        "tcp_flags": "A",
        "seq": 9000,
        "ack": 1,
        "payload": 0,
        "reason": "seq-over",
        "breach": {"bound": "seq-over", "actual": 9000, "limit": 1000, "distance": 8000},
        "state": "ESTABLISHED",
        "nat": "dnat",
        "evidence": "bpf",
        "direction": "reply",
        "status": 14,
        "ct_mark": 0,
        "rule": "translated",
        "action": "drop",
        "verdict": "accept",
        "would": "drop",
    }
    return fields | changes


def summarise(events: Iterable[object]) -> Summary:
    """Summarise events; a text is a line as it is."""
    found = Summary()
    lines = (line if isinstance(line, str) else json.dumps(line) for line in events)
    for read in EventReader().read(io.BytesIO("\n".join(lines).encode())):
        add_event(found, read)
    return found


class Tags(HTMLParser):
    """Asserts that every tag is closed, in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        assert not any(name in {"src", "href"} for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag, attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def well_formed(html: str) -> str:
    parser = Tags()
    parser.feed(html)
    assert parser.open == []
    return html


def test_folded_events_count_each_packet() -> None:
    found = summarise(
        [event(), event(count=9), event(would="accept", action="log", reason="raced")]
    )
    assert (found.packets, found.drops, found.dropped) == (11, 10, 0)
    assert found.reasons == {"seq-over": 10, "raced": 1}
    assert found.reason_drops["seq-over"] == 10


def test_both_directions_are_one_flow() -> None:
    there = event(src="192.0.2.2", dst="10.244.0.2", sport=40000, dport=8080)
    found = summarise([event(), there, event(proto="icmp", sport=None, dport=None)])
    assert [flow.packets for flow in found.flows.values()] == [2, 1]
    name = ("tcp", "10.244.0.2:8080", "192.0.2.2:40000")
    assert found.flows[name].furthest == 8000


def test_ipv6_ends_have_brackets() -> None:
    found = summarise([event(family=6, src="fd00::1", dst="fd00::2")])
    assert next(iter(found.flows)) == ("tcp", "[fd00::1]:8080", "[fd00::2]:40000")


def test_flows_beyond_the_bound_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_FLOWS_MAX", 2)  # 10,000 takes seconds
    found = summarise(event(dport=port) for port in range(5))
    assert (len(found.flows), found.others) == (2, 3)
    assert "not told apart" in render(found, title="scan")


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    events = [event(timestamp=f"2026-11-23T02:00:{second:02}Z") for second in range(30)]
    html = well_formed(render(summarise(events), title="node-7"))
    assert "2026-11-23 02:00:00 to 2026-11-23 02:00:29 UTC" in html
    assert html.count("<svg") == 2


def test_values_are_not_markup() -> None:
    """No value of a summary is taken for HTML."""
    nasty = "<script>alert(1)</script>"
    found = summarise([event(rule=nasty)])
    flow = FlowSummary(packets=1, reasons=Counter({nasty: 1}), nat=nasty, state=nasty, rule=nasty)
    found.flows[nasty, nasty, nasty] = flow
    for counter in (found.modes, found.reasons):
        counter[nasty] += 1
    found.nats[nasty, nasty] += 1
    found.distances[nasty, 1] += 1
    well_formed(render(found, title=nasty, skipped=nasty))


def test_no_packets() -> None:
    assert "No packet was recorded" in well_formed(render(summarise([]), title="quiet"))


def test_many_flows_and_days() -> None:
    events = [
        event(dport=port, timestamp=f"2026-{1 + port // 9:02}-01T00:00:00Z") for port in range(99)
    ]
    html = well_formed(render(summarise(events), title="year"))
    assert "The 74 others are not shown" in html
    assert "Packets in each day" in html


def test_every_reason_is_explained() -> None:
    html = well_formed(render(summarise([event(reason=r.value) for r in Reason]), title="all"))
    for reason in Reason:
        assert escape(REASONS[reason].phrase) in html


def test_unknown_reason_has_a_row() -> None:
    found = summarise([event()])
    found.reasons["of-tomorrow"] += 1
    assert "of-tomorrow" in render(found, title="later")


@pytest.mark.parametrize(
    ("height", "top"), [(0, "2"), (2, "2"), (3, "4"), (5, "10"), (11, "20"), (41, "100")]
)
def test_the_scale_is_round(height: int, top: str) -> None:
    chart = stacked_bars([Bar(label="a", parts=(height,), title="t")], ("drop",), "c")
    assert re.findall(r'text-anchor="end">([\d.]+)<', chart)[-1] == top


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "events.jsonl"
    lines = [json.dumps(event()), "[]", "no json", "x" * 70_000, json.dumps(event())]
    log.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "report.html"
    assert main(["report", str(log), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 packets, 1 flows\n"
    html = well_formed(out.read_text(encoding="utf-8"))
    assert "events.jsonl" in html
    assert "skipped 3 lines that are not events" in html


def test_the_page_compares_policies(tmp_path: Path) -> None:
    """The rule of kube-proxy would drop packets of a flow that lived on."""
    asymmetric = event(
        reason="bad-transition", breach=None, nat="none", rule="all", action="log", would="accept"
    )
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(asymmetric) + "\n" for _ in range(3)), encoding="utf-8")
    out = tmp_path / "report.html"
    words = ["--policy", "preset:kube-proxy", "--policy", "preset:default"]
    assert main(["report", str(log), "-o", str(out), *words]) == 0
    html = well_formed(out.read_text(encoding="utf-8"))
    assert "Only <code>preset:kube-proxy</code> would drop 3:" in html
    assert "Only <code>preset:default</code> would drop 0." in html
    assert "lived on</td>" in html


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(json.dumps(event()) + "\n", encoding="utf-8")
    link = tmp_path / "device"
    link.symlink_to("/dev/null")
    assert main(["report", str(log), "-o", str(link)]) == 0
    assert link.is_char_device()


def _stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextIO:
    """Standard input with one event."""
    path = tmp_path / "stdin"
    path.write_text(json.dumps(event()))
    stream = path.open()
    monkeypatch.setattr("sys.stdin", stream)
    return stream


def test_command_reads_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with _stdin(tmp_path, monkeypatch):
        assert main(["report", "-", "-o", str(tmp_path / "r.html"), "--title", "live"]) == 0
    assert "1 packets" in capsys.readouterr().out


def test_standard_input_and_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events are read once for both."""
    out = tmp_path / "r.html"
    with _stdin(tmp_path, monkeypatch):
        assert main(["report", "-", "-o", str(out), "--policy", "preset:strict"]) == 0
    assert "<code>preset:strict</code>" in well_formed(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nowhere.jsonl", "-o", "x.html"], "nowhere.jsonl: cannot be read: No such file"),
        (["bad.jsonl", "-o", "x.html"], "bad.jsonl: expected packet_judged events, found none"),
        (["x.pcap", "-o", "x.html"], "x.pcap: a capture: use replay or whatif"),
        (["good.jsonl", "-o", "no/x.html"], "no/x.html: cannot be written: No such file"),
        (["good.jsonl", "-o", "x.html", *["--policy", "p"] * 3], "one or two policies"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text(json.dumps(event()) + "\n", encoding="utf-8")
    Path("bad.jsonl").write_text("{}\n", encoding="utf-8")
    Path("x.pcap").write_bytes(captures.pcap([(1, 0, bytes(60))]))
    before = sorted(Path.cwd().iterdir())
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert sorted(Path.cwd().iterdir()) == before


def test_the_input_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(json.dumps(event()) + "\n", encoding="utf-8")
    assert main(["report", str(log), "-o", str(log)]) == 2
    assert "is the input file" in capsys.readouterr().err
    assert json.loads(log.read_bytes())["event"] == "packet_judged"
