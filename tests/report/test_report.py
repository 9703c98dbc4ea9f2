# SPDX-License-Identifier: MIT
"""The page of recorded events."""

import gzip
import io
import json
import re
import sys
from collections.abc import Iterable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TextIO

import pytest

from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.glossary import CAUSES, REASONS, Cause
from nfq_guard.report import summary
from nfq_guard.report.page import page
from nfq_guard.report.summary import Fate, Summary, add_event, server_of
from nfq_guard.telemetry.reader import EventReader
from tests.support import captures
from tests.support.events import event, window


def summarise(events: Iterable[object]) -> Summary:
    """Summarise events; a text is a line as it is."""
    found = Summary()
    lines = (line if isinstance(line, str) else json.dumps(line) for line in events)
    for read in EventReader().read(io.BytesIO("\n".join(lines).encode())):
        add_event(found, read)
    return found


def rendered(*events: object, title: str = "node-7") -> str:
    return well_formed(page(summarise(events), title=title))


def no_flow(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of an event
    """An event of a packet without a flow, from a private source."""
    return event(
        reason="no-entry", breach=None, nat="unknown", state=None, direction=None, status=None,
        **{"src": "10.0.0.1", "sport": 40_000, "dport": 80, **changes},
    )  # fmt: skip


def answer(reason: str) -> dict[str, Any]:
    """The event of an RST that answers a packet of that reason."""
    cause = {"timestamp": event()["timestamp"], "reason": reason, "rule": "r", "delay_us": 1000}
    return no_flow(tcp_flags="RA", caused_by=cause)


class Tags(HTMLParser):
    """Asserts that every tag is closed in order, and that nothing is loaded."""

    VOID = frozenset({"meta", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert name != "src"
            assert name != "href" or (value or "").startswith("#")
            assert not name.startswith("on")
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


def island(html: str) -> dict[str, Any]:
    """The data of the page's script."""
    found = re.search(r'<script type="application/json" id="flow-data">(.*?)</script>', html)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_folded_events_count_each_packet() -> None:
    found = summarise(
        [event(), event(count=9), event(would="accept", action="log", reason="raced", breach=None)]
    )
    assert (found.counts.packets, found.counts.drops) == (11, 10)
    assert found.counts.reasons == {"seq-over": 10, "raced": 1}
    assert found.reasons["seq-over"].drops == 10


def test_what_became_of_packets() -> None:
    found = summarise(
        [
            event(),
            event(nat="none"),
            event(nat="none", leak=True),
            event(mode="enforce", verdict="drop", count=4),
        ]
    )
    assert found.counts.fates == [2, 1, 4]
    assert found.services["10.244.0.2:8080"].fates[Fate.DROPPED] == 4


def test_both_directions_are_one_flow() -> None:
    there = event(src="192.0.2.2", dst="10.244.0.2", sport=40000, dport=8080, direction="original")
    found = summarise([event(), there, event(proto="icmp", sport=None, dport=None)])
    assert [flow.counts.packets for flow in found.flows.values()] == [2, 1]
    name = ("tcp", "10.244.0.2:8080", "192.0.2.2:40000")
    assert found.flows[name].furthest == 8000
    assert found.flows[name].service == "10.244.0.2:8080"


def test_ipv6_ends_have_brackets() -> None:
    found = summarise([event(family=6, src="fd00::1", dst="fd00::2")])
    assert next(iter(found.flows)) == ("tcp", "[fd00::1]:8080", "[fd00::2]:40000")


@pytest.mark.parametrize(
    ("changes", "service"),
    [
        ({"direction": "reply"}, "10.244.0.2:8080"),
        ({"direction": "original"}, "192.0.2.2:40000"),
        ({"direction": None}, "10.244.0.2:8080"),
        ({"direction": None, "sport": 50000}, "192.0.2.2:40000"),
        ({"direction": None, "sport": None, "dport": None}, "192.0.2.2"),
    ],
)
def test_the_service_of_a_packet(changes: dict[str, Any], service: str) -> None:
    (read,) = EventReader().read(io.BytesIO(json.dumps(event(**changes)).encode()))
    assert server_of(read.event) == service


def test_the_bounds_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FLOWS_MAX", "_SERVICES_MAX", "_EVENTS_MAX", "_RESETS_MAX"):
        monkeypatch.setattr(summary, name, 2)  # the real bounds take minutes
    reset = {"timestamp": event()["timestamp"], "reason": "seq-over", "rule": "r", "delay_us": 1}
    found = summarise(
        event(sport=port, dport=port + 1, caused_by=reset) for port in (1, 1, 1, 2, 3, 4, 5)
    )
    assert (len(found.flows), found.others) == (2, 3)
    assert (len(found.services), found.kept, len(found.resets)) == (2, 2, 2)
    assert found.counts.resets == 7
    assert found.reasons["seq-over"].resets == 7
    html = well_formed(page(found, title="scan"))
    assert "3 packets of further flows are not told apart" in html
    assert "3 packets of further services are not told apart" in html
    assert "2 services told apart, and 3 packets of further ones" in html
    assert "5 more are not listed" in html


def test_the_times_are_those_of_the_recording() -> None:
    html = rendered(*(event(timestamp=f"2026-11-23T02:00:{second:02}Z") for second in range(30)))
    assert "2026-11-23 02:00:00 to 2026-11-23 02:00:29 UTC" in html
    assert "Packets in each second" in html


@pytest.mark.parametrize(
    ("events", "level", "headline"),
    [
        ([], "none", "No packet was recorded."),
        ([event(nat="none")], "calm", "No: no packet of a translated flow is among them."),
        (
            [event(nat="none"), no_flow()],
            "calm",
            "No: no packet is known to be of a translated flow.</b>"
            "2 INVALID packets got through, 1 of unknown translation.",
        ),
        (
            [event(mode="enforce", verdict="drop"), no_flow()],
            "calm",
            "No: what is known to do harm was dropped.</b>"
            "1 of 2 INVALID packets was dropped, and 1 of unknown translation got through.",
        ),
        (
            [no_flow(mode="enforce", verdict="drop")],
            "calm",
            "No: what could do harm was dropped.</b>"
            "1 of 1 INVALID packet was dropped, and none of a translated flow got through.",
        ),
        (
            [event(mode="enforce", verdict="drop"), event(nat="none")],
            "calm",
            "No: what could do harm was dropped.",
        ),
        ([event()], "risk", "Yes: packets got through untranslated."),
        (
            [
                event(
                    tcp_flags="R",
                    caused_by={
                        "timestamp": "2026-11-23T01:59:59.999Z",
                        "reason": "seq-over",
                        "rule": "translated",
                        "delay_us": 1000,
                    },
                )
            ],
            "harm",
            "Yes: connections were reset.",
        ),
        (
            [event(nat="none"), answer("bad-flags")],
            "risk",
            "Perhaps: RSTs answered packets without",
        ),
        (
            [answer("no-entry"), answer("bad-flags")],
            "risk",
            "Perhaps: RSTs answered packets withou",
        ),
        ([answer("no-entry"), answer("seq-over")], "harm", "Yes: connections were reset."),
        ([answer("no-entry"), event()], "harm", "Yes: connections were reset."),
    ],
)
def test_the_answer_comes_first(events: list[object], level: str, headline: str) -> None:
    html = rendered(*events)
    assert f'<div class="verdict {level}"><b>{headline}' in html


def test_a_count_of_flows_or_services_says_if_it_is_not_of_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve scanned hosts, before a service with a thousand times as many packets."""
    monkeypatch.setattr(summary, "_FLOWS_MAX", 11)
    monkeypatch.setattr(summary, "_SERVICES_MAX", 11)
    scan = [no_flow(dst=f"192.0.2.{host}") for host in range(12)]
    busy = no_flow(dst="192.0.2.99", dport=443, count=12_345, first=event()["timestamp"])
    html = well_formed(page(summarise([*scan, busy]), title="scan"))
    assert "cannot be told<span>11 services told apart, and 12,346 packets of further ones" in html
    assert "11 of 11 packets of the flows that are told apart are the only one of" in html
    assert "12,357 packets of at least 11 flows." in html
    assert '<span style="top:0%">15,000</span><span style="top:50%">7,500</span>' in html
    assert ", 12,357 got through, 0 dropped" in html
    file = tmp_path / "events"
    file.write_text("\n".join(map(json.dumps, [*scan, busy])))
    assert main(["report", str(file), "-o", str(tmp_path / "page")]) == 0
    assert "12,357 packets, 11 flows and more" in capsys.readouterr().out


def test_a_reset_names_its_cause() -> None:
    cause = {
        "timestamp": "2026-11-23T01:59:59.999Z",
        "reason": "ack-over",
        "rule": "translated",
        "delay_us": 1500,
    }
    html = rendered(event(tcp_flags="R", caused_by=cause))
    assert "2026-11-23 01:59:59.999" in html
    assert "1.5 ms" in html
    (flow,) = island(html)["flows"]
    assert flow[6] == 1


def test_a_reset_tells_nothing_else_of_its_flow() -> None:
    """It comes from an address that escaped its translation, of which there is no entry."""
    cause = {
        "timestamp": "2026-11-23T01:59:59.999Z",
        "reason": "seq-over",
        "rule": "translated",
        "delay_us": 1000,
    }
    unknown = {"reason": "no-entry", "breach": None, "nat": "unknown", "state": None}
    reset = event(tcp_flags="R", caused_by=cause, **unknown)
    found = summarise([event(), reset])
    (flow,) = found.flows.values()
    assert (flow.nat, flow.state) == ("dnat", "ESTABLISHED")
    assert found.causes == {}
    assert summarise([event(), event(tcp_flags="R", **unknown)]).causes


def test_resets_are_in_the_order_of_their_times() -> None:
    """An event of several packets is written after those of later packets."""
    cause = {
        "timestamp": "2026-11-23T01:59:59.999Z",
        "reason": "seq-over",
        "rule": "translated",
        "delay_us": 1000,
    }
    reset = {"tcp_flags": "R", "caused_by": cause}
    late = event(timestamp="2026-11-23T02:00:05Z", **reset)
    folded = event(timestamp="2026-11-23T02:00:06Z", first="2026-11-23T02:00:01Z", count=3, **reset)
    html = rendered(late, folded)
    at = re.findall(r'data-label="RST at">([^<]*)<', html)
    assert at == ["2026-11-23 02:00:01.000 \u00d73", "2026-11-23 02:00:05.000"]


def test_values_are_not_markup() -> None:
    nasty = "<script>alert(1)</script></style>\"'><img src=x onerror=alert(1)>"
    finding = {"id": nasty, "status": nasty, "what": nasty, "todo": nasty}
    found = summarise([event(rule=nasty, **{"in": nasty, "out": nasty})])
    found.flows[nasty, nasty, nasty] = summary.FlowSummary(
        nasty, counts=found.counts, nat=nasty, state=nasty
    )
    found.services[nasty] = found.counts
    found.reasons[nasty] = found.counts
    found.modes[nasty] += 1
    found.distances[nasty, 1] += 1
    html = well_formed(page(found, title=nasty, gaps=[nasty], findings=[finding]))
    assert "<img" not in html
    assert "<script>alert" not in html
    assert nasty in json.dumps(island(html), ensure_ascii=False).replace('\\"', '"')


def test_many_flows_and_days() -> None:
    html = rendered(
        *(
            event(dport=port, timestamp=f"2026-{1 + port // 9:02}-01T00:00:00Z")
            for port in range(99)
        )
    )
    assert "The 20 busiest of 99." in html
    assert len(island(html)["flows"]) == 99
    assert island(html)["days"] is True
    assert "Packets in each 7 days" in html


def test_every_reason_is_explained() -> None:
    html = rendered(*(event(reason=reason.value, breach=None) for reason in Reason))
    for reason in Reason:
        assert escape(REASONS[reason].phrase) in html


def test_unknown_reason_has_a_row() -> None:
    found = summarise([event()])
    found.reasons["of-tomorrow"] = found.counts
    assert "of-tomorrow" in page(found, title="later")


def test_the_bounds_of_an_event() -> None:
    """All four, in bytes from the limit, with the window that the event has."""
    data = island(rendered(event(window=window()), event(reason="raced", breach=None)))
    words = data["words"]
    ((first, second),) = (flow[14] for flow in data["flows"])
    assert [(words[bound[0]], bound[1]) for bound in first[13]] == [
        ("seq-over", -8000),
        ("seq-under", 8000 + 500 + 65535),
        ("ack-over", 49),
        ("ack-under", 66000 - 49),
    ]
    assert first[13][0][2:] == ["seq = 9000", "td_maxend = 1000", True, 8000,
                                "td_end = 500", -500, [8000, 8000]]  # fmt: skip
    assert second[13] == 0


def test_an_rst_has_one_bound() -> None:
    changes = {
        "tcp_flags": "R",
        "reason": "rst-outside",
        "breach": {"bound": "rst-outside", "actual": 9000, "limit": 9700, "distance": 700},
    }
    (flow,) = island(rendered(event(window=window(receiver_td_maxack=9700), **changes)))["flows"]
    ((bound,),) = (one[13] for one in flow[14])
    assert bound[1:3] == [-700, "seq = 9000"]


def test_distances_are_cropped_to_what_there_is() -> None:
    far = {"bound": "seq-over", "actual": 2, "limit": 1, "distance": 1 << 12}
    near = {"bound": "ack-over", "actual": 2, "limit": 1, "distance": 1 << 10}
    html = rendered(event(breach=far, count=3), event(reason="ack-over", breach=near))
    cells = re.findall(r'<i style="height:(\d+)%" title="([^"]*)"', html)
    assert [height for height, _ in cells] == ["100", "0", "0", "0", "0", "100"]
    assert cells[5][1] == "4 k to 8 k bytes: 3 packets"


def test_the_distances_of_folded_packets_count_each() -> None:
    found = summarise([event(count=3, distances=[[8000, 2], [20, 1]])])
    assert found.distances == {("seq-over", 13): 2, ("seq-over", 5): 1}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "events.jsonl"
    lines = [json.dumps(event()), "[]", "no json", "x" * 70_000, json.dumps(event())]
    log.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "report.html"
    assert main(["report", str(log), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 2 packets, 1 flow\n"
    html = well_formed(out.read_text(encoding="utf-8"))
    assert "events.jsonl" in html
    assert "skipped 3 lines that are not events" in html
    for preset in ("default", "kube-proxy", "strict"):
        assert f"<code>preset:{preset}</code>" in html


def test_the_page_says_that_the_recording_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a compressed file that was copied while it was written."""
    log = tmp_path / "events.jsonl.gz"
    lines = "".join(json.dumps(event(seq=number)) + "\n" for number in range(100))
    log.write_bytes(gzip.compress(lines.encode())[:-4])
    out = tmp_path / "report.html"
    assert main(["report", str(log), "-o", str(out)]) == 0
    problem = "not read to the end: the compressed file is truncated"
    assert f'<p class="warning-box">{problem}</p>' in well_formed(out.read_text(encoding="utf-8"))
    assert capsys.readouterr().err == f"nfq-guard: {log}: {problem}\n"


def test_the_page_compares_policies(tmp_path: Path) -> None:
    """The rule of kube-proxy would drop packets of a flow that continued."""
    asymmetric = event(
        reason="bad-transition", breach=None, nat="none", rule="all", action="log", would="accept",
    )  # fmt: skip
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(asymmetric) + "\n" for _ in range(3)), encoding="utf-8")
    out = tmp_path / "report.html"
    words = ["--policy", "preset:kube-proxy", "--policy", "preset:default"]
    assert main(["report", str(log), "-o", str(out), *words]) == 0
    html = well_formed(out.read_text(encoding="utf-8"))
    assert "Only <code>preset:kube-proxy</code> would drop 3:" in html
    assert "Only <code>preset:default</code> would drop 0." in html
    assert "continued</td>" in html


def test_the_page_says_what_is_an_estimate_and_what_a_heal_changes(tmp_path: Path) -> None:
    """An event of several packets does not have the time of each: the RST may be among them."""
    several = event(
        count=5, timestamp="2026-11-23T02:00:05.400001Z", first="2026-11-23T02:00:05.000001Z"
    )
    reset = event(
        timestamp="2026-11-23T02:00:05.200001Z", reason="no-entry", breach=None, tcp_flags="R",
        nat="unknown", state=None, direction=None, status=None, ct_mark=None,
    )  # fmt: skip
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(one) + "\n" for one in (reset, several)), encoding="utf-8")
    out = tmp_path / "report.html"
    words = ["--policy", "preset:heal", "--policy", "preset:observe"]
    assert main(["report", str(log), "-o", str(out), *words]) == 0
    html = well_formed(out.read_text(encoding="utf-8"))
    assert re.findall(r'"drops followed by an RST"[^>]*>([^<]*)<', html)[-2:] == [
        "about 2",
        "about 0",
    ]
    assert "<code>preset:heal</code> would heal 1 flow: in force, it drops fewer of" in html
    assert "<code>preset:observe</code> would heal" not in html


def test_packets_that_a_policy_lets_escape(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(json.dumps(event(count=7)) + "\n", encoding="utf-8")
    out = tmp_path / "report.html"
    words = [
        "--policy",
        "preset:observe",
        "--policy",
        "preset:default",
        "--policy",
        "preset:strict",
    ]
    assert main(["report", str(log), "-o", str(out), *words]) == 0
    cells = re.findall(
        r'data-label="accepts of translated flows">(\d+)<', out.read_text(encoding="utf-8")
    )
    assert cells == ["7", "0", "0"]


def test_the_findings_of_the_host(tmp_path: Path) -> None:
    log, found, out = (tmp_path / name for name in ("events", "doctor", "page"))
    log.write_text(json.dumps(event()) + "\n", encoding="utf-8")
    checks = [
        {"id": "table.fill", "status": "warning", "what": "97 % full", "todo": "raise it"},
        {"id": "foreign", "status": "ok", "what": "none", "todo": ""},
    ]
    found.write_text("".join(json.dumps(check) + "\n" for check in checks), encoding="utf-8")
    assert main(["report", str(log), "-o", str(out), "--doctor", str(found)]) == 0
    html = well_formed(out.read_text(encoding="utf-8"))
    assert "To do: raise it" in html
    assert "<summary>1 check is fine</summary>" in html


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(json.dumps(event()) + "\n", encoding="utf-8")
    link = tmp_path / "device"
    link.symlink_to("/dev/null")
    assert main(["report", str(log), "-o", str(link)]) == 0
    assert link.is_char_device()


def test_without_jinja2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon does not need it, so it may be absent."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    log = tmp_path / "events.jsonl"
    log.write_text(json.dumps(event()) + "\n", encoding="utf-8")
    assert main(["report", str(log), "-o", str(tmp_path / "r.html")]) == 69
    said = capsys.readouterr().err
    assert "pages need the package jinja2 (pip install 'nfq-guard[report]')" in said
    assert said.count("\n") == 1


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
    assert "1 packet, 1 flow\n" in capsys.readouterr().out


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
        (["good.jsonl", "-o", "x.html", *["--policy", "p"] * 9], "expected at most 8, found 9"),
        (["good.jsonl", "-o", "x.html", "--doctor", "no"], "no: cannot be read: No such file"),
        (
            ["good.jsonl", "-o", "x.html", "--doctor", "good.jsonl"],
            "good.jsonl: expected the output of doctor",
        ),
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


def no_entry(second: int, port: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of an event
    fields: dict[str, Any] = {
        "timestamp": f"2026-11-23T02:{second // 60:02}:{second % 60:02}.000000Z",
        "src": "198.51.100.2",
        "dport": port,
        "reason": "no-entry",
        "breach": None,
        "state": None,
        "nat": "unknown",
        "direction": None,
        "status": None,
        "ct_mark": None,
    }
    return event(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tcp_flags": "R", "src": "10.0.0.1", "dst": "8.8.8.8"}, Cause.UNTRANSLATED),
        ({"tcp_flags": "SA"}, Cause.SYN_ELSEWHERE),
        (
            {"reason": "bad-transition", "state": "SYN_SENT", "direction": "original"},
            Cause.DIRECT_RETURN,
        ),
        (
            {"reason": "bad-transition", "state": "CLOSE", "direction": "reply", "tcp_flags": "S"},
            Cause.OTHER_WAY,
        ),
        ({"reason": "bad-transition", "state": "CLOSE", "direction": "original"}, None),
        ({"reason": "seq-over", "state": "SYN_SENT", "tcp_flags": "R"}, Cause.UNANSWERED),
        ({"reason": "seq-over", "state": "ESTABLISHED", "tcp_flags": "R"}, None),
        ({"tcp_flags": "R"}, None),
        ({"tcp_flags": None, "proto": "icmp", "sport": None, "dport": None}, None),
    ],
)
def test_causes_that_an_event_tells(changes: dict[str, Any], cause: Cause | None) -> None:
    text = rendered(no_entry(0, 1, **changes), no_entry(1, 1, **changes))
    assert any(escape(one.sentences) in text for one in CAUSES.values()) == (cause is not None)
    if cause is not None:
        assert escape(CAUSES[cause].sentences) in text
        assert "2 packets of 1 flow." in text


@pytest.mark.parametrize(("gap_s", "cause"), [(11, Cause.EXPIRED), (9, Cause.GONE)])
def test_causes_that_the_flow_before_tells(gap_s: int, cause: Cause) -> None:
    """The timeout of CLOSE is 10 s."""
    closed = {"state": "CLOSE", "timestamp": "2026-11-23T02:00:00.000000Z"}
    text = rendered(event(src="198.51.100.2", dport=7, **closed), no_entry(gap_s, 7, tcp_flags="R"))
    assert escape(CAUSES[cause].sentences) in text


@pytest.mark.parametrize("state", ["SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"])
def test_a_flow_that_goes_on_between_two_events_has_not_expired(state: str) -> None:
    """Its valid packets have no events, and keep its entry, until it is deleted."""
    before = event(
        src="198.51.100.2", dport=7, state=state, timestamp="2026-11-16T02:00:00.000000Z"
    )
    text = rendered(before, no_entry(9, 7, tcp_flags="FA"))
    assert not any(escape(one.sentences) in text for one in CAUSES.values())


def test_flows_that_lost_their_entries_at_once() -> None:
    """As after a flush; and not where they are spread over time."""
    at_once = [no_entry(100 + port % 3, port) for port in range(1, 31)]
    text = rendered(no_entry(0, 100), *at_once)
    assert "30 of 31 flows without an entry were met first within 3 s of 2026-11-23 02:01" in text
    assert text.count("flush") == 1, "one hint at one cause"
    spread = [no_entry(port * 5, port) for port in range(1, 31)]
    assert "flush" not in rendered(*spread)


def test_events_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the page of an earlier run is."""
    page = tmp_path / "page.html"
    page.write_text("before", encoding="utf-8")
    assert main(["report", str(tmp_path / "missing"), "-o", str(page)]) == 2
    assert "missing" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "before"
