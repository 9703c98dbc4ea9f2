# SPDX-License-Identifier: MIT
"""`nfq-guard whatif` on recordings of typical flows."""

import gzip
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from nfq_guard.cli import main
from nfq_guard.finding import Reason
from nfq_guard.whatif import conversations, tally
from nfq_guard.whatif.tally import OTHERS
from tests.support.captures import pcap
from tests.support.events import event
from tests.support.segments import ACK, SYN, tcp_ipv4

ASYMMETRIC = {
    "src": "10.1.0.2",
    "dst": "10.2.0.2",
    "sport": 48526,
    "dport": 80,
    "reason": "bad-transition",
    "state": "SYN_SENT",
    "nat": "none",
    "direction": "original",
    "status": [],
    "ct_mark": 0,
}
TRANSLATED = {
    "src": "10.244.0.2",
    "dst": "192.0.2.2",
    "sport": 8080,
    "dport": 59202,
    "reason": "seq-over",
    "breach": {"bound": "seq-over", "actual": 100_000, "limit": 22_416, "distance": 77_584},
    "state": "ESTABLISHED",
    "nat": "dnat",
    "direction": "reply",
    "status": ["seen-reply", "assured"],
    "ct_mark": 0,
}
RST_BACK = {
    "src": "192.0.2.2",
    "dst": "10.244.0.2",
    "sport": 59202,
    "dport": 8080,
    "tcp_flags": "R",
    "reason": "no-entry",
}


def _event(second: float, **fields: object) -> bytes:
    event = {
        "event": "packet_judged",
        "timestamp": f"2026-01-02T03:04:{second:09.6f}Z",
        "mode": "dry-run",
        "queue": 0,
        "hook": "PREROUTING",
        "in": "eth0",
        "out": "",
        "mark": 0,
        "family": 4,
        "proto": "tcp",
        "tcp_flags": "A",
        "seq": 1,
        "ack": 1,
        "payload": 0,
        "breach": None,
        "state": None,
        "nat": "unknown",
        "evidence": "bpf",
        "direction": None,
        "status": None,
        "ct_mark": None,
        "rule": "default",
        "action": "log",
        "verdict": "accept",
        "would": "accept",
    }
    return orjson.dumps(event | fields)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """A healthy flow of which one half is seen, and a translated one that is reset."""
    path = tmp_path / "events.jsonl"
    lines = [_event(n / 10, **ASYMMETRIC) for n in range(4)]
    lines += [_event(1, **TRANSLATED), _event(1.01, **RST_BACK)]
    path.write_bytes(b"\n".join([b'{"event":"started"}', *lines]) + b"\n")
    return path


def _json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["whatif", *words, "--format", "json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_the_flow_that_kube_proxy_breaks(capsys: pytest.CaptureFixture[str], events: Path) -> None:
    """The rule of kube-proxy would break the asymmetric flow; the default policy would not."""
    report = _json(
        capsys, str(events), "--policy", "preset:kube-proxy", "--policy", "preset:default"
    )
    kube_proxy, default = report["policies"]
    assert (report["kind"], report["packets"], report["invalid"]) == ("events", 6, 6)
    assert (report["kernel"], report["kernel_doubt"]) == (None, None)
    assert kube_proxy["drops"] == 6
    assert kube_proxy["drops_by_reason"] == {"bad-transition": 4, "seq-over": 1, "no-entry": 1}
    assert kube_proxy["drops_by_peer"] == {"10.1.0.2": 4, "10.244.0.2": 1, "192.0.2.2": 1}
    flow = "10.1.0.2:48526 > 10.2.0.2:80"
    assert kube_proxy["false_positives"] == {"packets": 3, "flows": {flow: 3}}
    assert default["drops_by_flow"] == {"10.244.0.2:8080 > 192.0.2.2:59202": 1}
    assert default["false_positives"] == {"packets": 0, "flows": {}}
    assert default["followed_by_rst"] == 1
    assert default["examples"] == [
        {
            "number": 6,
            "flow": "10.244.0.2:8080 > 192.0.2.2:59202",
            "reason": "seq-over",
            "rule": "translated",
        }
    ]
    difference = report["difference"]
    assert difference["only_a_drops"]["false_positives"]["flows"] == {flow: 3}
    assert difference["only_b_drops"]["drops"] == 0


def test_what_observe_would_miss(capsys: pytest.CaptureFixture[str], events: Path) -> None:
    report = _json(capsys, str(events), "--policy", "preset:observe")
    (observe,) = report["policies"]
    assert observe["passes"] == 6
    assert observe["false_negatives"] == {
        "packets": 1,
        "flows": {"10.244.0.2:8080 > 192.0.2.2:59202": 1},
    }
    assert report["difference"] is None


def test_drops_that_were_carried_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A flow that continues although its packet was dropped confirms the drop."""
    path = tmp_path / "events.jsonl"
    lines = [_event(n, **TRANSLATED, verdict="drop", count=2) for n in range(2)]
    path.write_bytes(b"\n".join(lines))
    (strict,) = _json(capsys, str(path), "--policy", "preset:strict")["policies"]
    assert (strict["drops"], strict["confirmed_drops"]) == (4, 4)
    assert strict["false_positives"]["packets"] == 0


def test_text(capsys: pytest.CaptureFixture[str], events: Path) -> None:
    words = ["whatif", str(events), "--policy", "preset:kube-proxy", "--policy", "preset:observe"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{events}: 6 INVALID packets"
    assert "policy A: preset:kube-proxy" in lines
    assert "  3 drops in flows that continued (false positives):" in lines
    assert "          3  10.1.0.2:48526 > 10.2.0.2:80" in lines
    assert "  1 drop of packets that were followed by an RST" in lines
    assert "  would accept 1 that was followed by an RST (false negatives):" in lines
    assert "  only A would drop 6" in lines
    assert "  only B would drop 0" in lines


def test_what_would_be_healed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The default policy heals at the second copy of a segment."""
    path = tmp_path / "events.jsonl"
    copies = [event(timestamp=f"2026-11-23T02:00:0{second}.000001Z") for second in range(3)]
    other = event(timestamp="2026-11-23T02:00:04.000001Z", seq=9001)
    path.write_bytes(b"\n".join(orjson.dumps(one) for one in [*copies, other]))
    words = (str(path), "--policy", "preset:default")
    (policy,) = _json(capsys, *words)["policies"]
    assert policy["by_action"] == {"drop": 2, "heal": 2}
    assert policy["by_rule"] == {"translated": 2, "lost-window": 2}
    assert policy["drops"] == policy["least_drops"] == policy["most_drops"] == 4
    assert main(["whatif", *words]) == 0
    text = capsys.readouterr().out
    # A rate decides, and events do not have what it counts by of each packet.
    assert not policy["rules_exact"]
    assert "  about 2 of these drops by rules that heal\n" in text
    assert policy["heal_flows"] == 1
    assert "  1 of the flows was not healed when recorded: in force, the policy heals" in text


def test_what_was_healed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A recording of a policy in force has the packets that are INVALID beside its heals."""
    path = tmp_path / "events.jsonl"
    copies = [
        event(timestamp=f"2026-11-23T02:00:0{second}.000001Z", mode="enforce", verdict="drop")
        for second in range(2)
    ]
    path.write_bytes(b"\n".join(orjson.dumps(one) for one in copies))
    words = (str(path), "--policy", "preset:default", "--policy", "preset:observe")
    healing, observing = _json(capsys, *words)["policies"]
    assert (healing["by_action"]["heal"], healing["heal_flows"]) == (1, 0)
    assert (healing["rules_exact"], observing["rules_exact"]) == (False, True)
    assert main(["whatif", *words]) == 0
    assert "when recorded: in force" not in capsys.readouterr().out


def test_many_flows_in_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(_event(1, **ASYMMETRIC | {"sport": n}) for n in range(9)))
    assert main(["whatif", str(path), "--policy", "preset:strict"]) == 0
    out = capsys.readouterr().out
    assert "by flow (9):" in out
    assert "and 4 more" in out


def test_flows_are_counted_within_bounds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of flows is counted together as others."""
    monkeypatch.setattr(tally, "MOST_COUNTED", 3)
    path = tmp_path / "events.jsonl"
    lines = [_event(1, **ASYMMETRIC | {"sport": n, "src": f"10.1.0.{n}"}) for n in range(9)]
    path.write_bytes(b"\n".join(lines))
    (strict,) = _json(capsys, str(path), "--policy", "preset:strict")["policies"]
    assert strict["drops_by_flow"][OTHERS] == 6
    assert strict["drops_by_peer"][OTHERS] == 6
    assert strict["flows"] == 3
    assert main(["whatif", str(path), "--policy", "preset:strict"]) == 0
    out = capsys.readouterr().out
    assert "by flow (3 and others):" in out
    assert "by source (3 and others):" in out


def test_endpoints_of_all_kinds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    no_ports = {"sport": None, "dport": None, "tcp_flags": None}
    lines = [
        _event(1, **ASYMMETRIC | {"family": 6, "src": "fd00::1", "dst": "fd00::2"}),
        _event(1, **ASYMMETRIC | no_ports | {"proto": "icmp", "reason": "icmp-unrelated"}),
        _event(1, **ASYMMETRIC | no_ports | {"src": None, "dst": None, "reason": "malformed"}),
    ]
    path.write_bytes(b"\n".join(lines))
    (strict,) = _json(capsys, str(path), "--policy", "preset:strict")["policies"]
    assert set(strict["drops_by_flow"]) == {
        "[fd00::1]:48526 > [fd00::2]:80",
        "10.1.0.2 > 10.2.0.2",
        "? > ?",
    }
    assert {example["reason"] for example in strict["examples"]} == {
        Reason.BAD_TRANSITION,
        Reason.ICMP_UNRELATED,
        Reason.MALFORMED,
    }


@pytest.mark.parametrize("text", ["\n", '{"event":"started"}\n', "{rubbish\n{more\n"])
def test_no_events(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    assert main(["whatif", str(path), "--policy", "preset:strict"]) == 2
    err = capsys.readouterr().err
    assert "expected packet_judged events, found none" in err
    assert ("skipped 2 lines that are not events, the first in line 1" in err) is ("{r" in text)


def test_only_packets_without_an_event(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A policy that allowed every packet, without log_allowed, leaves a file of such events."""
    path = tmp_path / "events.jsonl"
    when = "2026-12-01T04:14:13.246536Z"
    path.write_text(f'{{"event":"allowed_unrecorded","timestamp":"{when}","packets":17}}\n')
    said = "17 packets have no event: allowed without log_allowed"
    report = _json(capsys, str(path), "--policy", "preset:strict")
    assert (report["invalid"], report["unrecorded"]["allowed"]) == (0, 17)
    assert main(["whatif", str(path), "--policy", "preset:strict"]) == 0
    assert f"0 INVALID packets\nnot in these counts: {said}\n" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["report", str(path), "-o", str(page), "--policy", "preset:strict"]) == 0
    assert said in page.read_text()
    capsys.readouterr()
    assert main(["dump", "--events", str(path)]) == 2
    assert f"found none; {said}\n" in capsys.readouterr().err


def test_missing_recording(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["whatif", str(tmp_path / "none"), "--policy", "preset:strict"]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_three_policies(capsys: pytest.CaptureFixture[str], events: Path) -> None:
    three = ["--policy", "preset:strict"] * 3
    assert main(["whatif", str(events), *three]) == 2
    assert "expected at most two, found 3" in capsys.readouterr().err


def test_mistakes_in_a_policy(capsys: pytest.CaptureFixture[str], events: Path) -> None:
    assert main(["whatif", str(events), "--policy", "preset:strickt"]) == 2
    assert "did you mean 'strict'" in capsys.readouterr().err


def _capture(path: Path) -> Path:
    """A connection seen in one direction: SYN, then segments of the opener, then an RST."""
    ends = ("10.1.0.2", "10.2.0.2", 48526, 80)
    packets = [(0, tcp_ipv4(*ends, 100, 0, SYN, b""))]
    packets += [(n, tcp_ipv4(*ends, 101, 1 + n, ACK, b"")) for n in range(1, 4)]
    frames = [(second, 0, bytes(12) + b"\x08\x00" + octets) for second, octets in packets]
    frames.append((5, 0, bytes(12) + b"\x08\x06" + bytes(28)))
    path.write_bytes(pcap(frames))
    return path


def test_capture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = _capture(tmp_path / "half.pcap")
    report = _json(capsys, str(path), "--policy", "preset:default", "--policy", "preset:kube-proxy")
    default, kube_proxy = report["policies"]
    assert (report["kind"], report["packets"], report["invalid"]) == ("capture", 4, 3)
    assert (report["kernel"], report["kernel_doubt"]) == ("6.1", None)
    assert (default["drops"], kube_proxy["drops"]) == (0, 3)
    flow = "10.1.0.2:48526 > 10.2.0.2:80"
    assert report["difference"]["only_b_drops"]["false_positives"]["flows"] == {flow: 2}
    assert kube_proxy["unknown"] == 1


def test_rules_about_what_a_capture_does_not_show(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """They may match live, and in the events of a daemon."""
    path = _capture(tmp_path / "half.pcap")
    policy = tmp_path / "policy.toml"
    rules = {
        "wan": 'in = "eth0"',
        "other": 'not.out = "eth1"',
        "marked": 'packet_mark = "0x1/0x1"\nct_mark = "0x0"',
        "window": 'evidence = "bpf"',
        "any-window": 'evidence = ["bpf", "replay"]',
        "without": 'evidence = ["ctnetlink", "kernel-log"]',
    }
    policy.write_text(
        '[policy]\ndefault = "allow"\n'
        + "".join(
            f'[[policy.rule]]\nname = "{name}"\n{lines}\naction = "log"\n'
            for name, lines in rules.items()
        )
    )
    words = (str(path), "--policy", str(policy), "--policy", "preset:default")
    ours, default = _json(capsys, *words)["policies"]
    assert ours["not_captured"] == {
        "wan": ["in"],
        "other": ["out"],
        "marked": ["packet_mark", "ct_mark"],
        "window": ["evidence"],
    }
    assert default["not_captured"] == {}
    note = (
        "a capture does not show what these rules of the policy ask: wan (in), other (out), "
        "marked (packet_mark, ct_mark), window (evidence)\n"
    )
    for command in (["whatif", *words], ["replay", str(path), "--policy", str(policy)]):
        assert main(command) == 0
        assert capsys.readouterr().out.count(note) == 1
    events = tmp_path / "events.jsonl"
    events.write_bytes(_event(1, **ASYMMETRIC))
    (ours,) = _json(capsys, str(events), "--policy", str(policy))["policies"]
    assert ours["not_captured"] == {}
    policy.write_text(
        '[policy]\ndefault = "allow"\n' + '[[policy.rule]]\nin = "eth0"\naction = "log"\n' * 7
    )
    assert main(["whatif", str(path), "--policy", str(policy)]) == 0
    assert "rule[4] (in) and 2 more\n" in capsys.readouterr().out


def test_assumed_translation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = _capture(tmp_path / "half.pcap")
    words = (str(path), "--policy", "preset:default", "--assume-nat", "dnat")
    assert _json(capsys, *words)["policies"][0]["drops"] == 3


def test_damaged_capture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = _capture(tmp_path / "half.pcap")
    path.write_bytes(path.read_bytes()[:-50])
    assert main(["whatif", str(path), "--policy", "preset:strict"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{path}: 3 INVALID packets among 4\n")
    assert "read up to frame 4" in captured.err
    found = _json(capsys, str(path), "--policy", "preset:strict")
    assert "read up to frame 4" in found["damage"]
    assert (found["doubtful"], found["skipped_lines"]) == (0, 0)


def test_what_is_missing_is_in_the_json_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl.gz"
    lines = [_event(n / 1000, **ASYMMETRIC) + b"\n" for n in range(2000)]
    path.write_bytes(gzip.compress(b"{rubbish\nmore\n" + b"".join(lines)))
    found = _json(capsys, str(path), "--policy", "preset:strict")
    assert (found["invalid"], found["skipped_lines"], found["damage"]) == (2000, 2, None)
    path.write_bytes(path.read_bytes()[:-1000])
    found = _json(capsys, str(path), "--policy", "preset:strict")
    assert 0 < found["invalid"] < 2000
    assert found["damage"].startswith("not read to the end: ")


def test_fates_in_a_long_recording(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Fates are decided before the end, for each policy and for their difference."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(_event(20.0 * n, **ASYMMETRIC) for n in range(3)))
    report = _json(capsys, str(path), "--policy", "preset:strict", "--policy", "preset:observe")
    assert report["policies"][0]["false_positives"]["packets"] == 2
    assert report["difference"]["only_a_drops"]["false_positives"]["packets"] == 2


def test_more_packets_of_a_flow_than_are_awaited(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_PACKETS", 2)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(_event(n / 10, **ASYMMETRIC) for n in range(5)))
    (strict,) = _json(capsys, str(path), "--policy", "preset:strict")["policies"]
    assert strict["false_positives"]["packets"] == 4


def test_an_event_of_several_packets_behind_the_reset_that_they_caused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon writes it at the end of log_interval_s; each packet was followed by the RST."""
    several = {
        **TRANSLATED,
        "first": "2026-01-02T03:04:01.000000Z",
        "count": 50,
        "distances": [[77_584, 20], [90_000, 30]],
    }
    lines = [_event(0, **TRANSLATED), _event(3, **RST_BACK), _event(2.9, **several)]
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    words = ["whatif", str(path), "--policy", "preset:observe", "--policy", "preset:strict"]
    assert main([*words, "--format", "json"]) == 0
    observe, strict = json.loads(capsys.readouterr().out)["policies"]
    assert observe["false_negatives"]["packets"] == 51
    assert (strict["followed_by_rst"], strict["fates_exact"]) == (51, True)
    assert [one["number"] for one in strict["examples"] if one["reason"] == "seq-over"] == [1, 3]
    assert main(words) == 0
    assert "estimates" not in capsys.readouterr().out
    # Some of them came after the RST, or too long before it.
    lines[1] = _event(2, **RST_BACK)
    path.write_bytes(b"\n".join(lines))
    assert main([*words, "--format", "json"]) == 0
    observe, strict = json.loads(capsys.readouterr().out)["policies"]
    assert (observe["fates_exact"], strict["fates_exact"]) == (False, False)
    assert 1 < observe["false_negatives"]["packets"] < 51
    assert main(words) == 0
    assert "  numbers by the fate of the flow are estimates" in capsys.readouterr().out


def test_without_a_policy_it_takes_the_configured_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.jsonl"
    events.touch()
    file = tmp_path / "nfq-guard.toml"
    monkeypatch.setattr("nfq_guard.service.config.DEFAULT_PATH", file)
    for text, source in ((None, "preset:default"), ('[policy]\ndefault = "allow"\n', str(file))):
        if text is not None:
            file.write_text(text, encoding="utf-8")
        assert main(["whatif", str(events)]) == 0
        assert f"policy A: {source}" in capsys.readouterr().out


@pytest.mark.parametrize("bound", ["seq-over", "ack-over", "seq-under", "ack-under", "rst-outside"])
@pytest.mark.parametrize(("distances", "copies"), [([[9, 3]], 2), ([[9, 1], [20, 2]], 1)])
def test_segments_of_an_event_are_told_apart_by_their_distance(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bound: str,
    distances: list[list[int]],
    copies: int,
) -> None:
    """A rate by segment counts copies, as the daemon's did: others are no copies of the first."""
    one = {
        **TRANSLATED,
        "reason": bound,
        "breach": {"bound": bound, "actual": 109, "limit": 100, "distance": 9},
        "first": "2026-01-02T03:04:01.000000Z",
        "count": 3,
        "distances": distances,
    }
    path, policy = tmp_path / "events.jsonl", tmp_path / "policy.toml"
    path.write_bytes(_event(3, **one))
    policy.write_text(
        '[policy]\ndefault = "drop"\ni_know = "drops everything"\n'
        '[[policy.rule]]\nname = "copies"\naction = "log"\n'
        'nat = ["dnat"]\nrate = { over = 1, in_s = 60, by = "segment" }\n'
    )
    (found,) = _json(capsys, str(path), "--policy", str(policy))["policies"]
    assert found["by_action"] == {"drop": 3 - copies, "log": copies}


def test_a_packet_whose_other_half_is_hidden_is_dropped_by_no_policy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As in the daemon: rules of the host, not the packet, are why it is INVALID."""
    path = tmp_path / "events.jsonl"
    lines = [
        _event(1, **ASYMMETRIC, hidden_half=True, count=3, first="2026-01-02T03:04:00.000000Z"),
        # Earlier daemons told it only where their policy would have dropped the packet.
        _event(2, **ASYMMETRIC | {"rule": "hidden-half", "action": "allow"}),
        _event(3, **ASYMMETRIC),
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    words = (str(path), "--policy", "preset:strict", "--policy", "preset:observe")
    strict, observe = _json(capsys, *words)["policies"]
    assert strict["by_rule"] == {"hidden-half": 4, "default": 1}
    assert (strict["least_drops"], strict["drops"], strict["most_drops"]) == (1, 1, 1)
    assert observe["by_rule"] == {"default": 5}
    assert main(["whatif", *words]) == 0
    text = capsys.readouterr().out
    assert "would drop 1, accept 4\n  4 of these accepts by the built-in rule hidden-half: " in text
    assert text.count("hidden-half") == 1


@pytest.mark.parametrize("distances", [None, [[distance, 1] for distance in range(1, 21)]])
@pytest.mark.parametrize("policies", [["strict"], ["strict", "default"]])
def test_the_fates_within_an_event_are_shared_out_as_one(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    distances: list[list[int]] | None,
    policies: list[str],
) -> None:
    """In whatever parts it is decided: by distance, or at moments for a rate beside it."""
    several = TRANSLATED | {"first": "2026-01-02T03:04:00.000000Z", "count": 20}
    if distances is not None:
        several |= {"distances": distances}
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join([_event(20, **several), _event(15, **RST_BACK)]))
    words = [word for name in policies for word in ("--policy", f"preset:{name}")]
    strict = _json(capsys, str(path), *words)["policies"][0]
    # The RST comes after three quarters, and counts for the packets of 5 s before it.
    assert (strict["followed_by_rst"], strict["unknown"]) == (5, 15)
    assert strict["false_positives"]["packets"] == 1
    assert not strict["fates_exact"]
