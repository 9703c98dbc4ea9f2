# SPDX-License-Identifier: MIT
"""The RST that a packet caused, on a host with a guard in dry-run: live, and in a capture."""

import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest

from nfq_guard.cli import main
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.wiretap import Tap, checksums_in_software
from tests.support.overrun import HOST, REDIRECTED, Overrun
from tests.support.queue import GuardProcess, typed, wait_for

pytestmark = pytest.mark.kernel

_METRICS: Final = "127.0.0.1:9477"


def test_the_reset_of_an_escaped_packet_names_it(
    namespace: Callable[[str], Namespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A packet of a redirected connection passes untranslated; the host answers with an RST.

    Conntrack has no entry for the tuple of that RST, so the RST is queued as well. A hundred
    scrapes by Prometheus, and clients that never read, change nothing.
    """
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nlog_interval_s = 0\nmetrics_listen = "{_METRICS}"\n'
        f'control_socket = "{tmp_path / "s"}"\n'
    )
    peer, host = namespace("peer"), namespace("host")
    with ExitStack() as stack:
        overrun = stack.enter_context(Overrun(peer, host))
        for space, interface in ((peer, "p0"), (host, "h0")):
            checksums_in_software(space, interface)
        tap = stack.enter_context(closing(Tap(host, "h0", "h0")))
        guard = GuardProcess(host, tmp_path / "log", "--config", str(config)).ready()
        stack.enter_context(guard)
        for _ in range(5):
            stack.enter_context(_never_reads(host))
        connection = overrun.connect(REDIRECTED)
        overrun.overrun([connection], 1)
        for _ in range(100):
            assert b"nfq_guard_packets_total" in _scraped(host)
        wait_for(lambda: any("caused_by" in event for event in guard.events("packet_judged")))
        stray, reset = guard.events("packet_judged")[:2]
        assert (stray["reason"], stray["nat"], stray["verdict"]) == ("seq-over", "dnat", "accept")
        assert (reset["hook"], reset["reason"], reset["tcp_flags"]) == ("OUTPUT", "no-entry", "R")
        assert reset["seq"] == stray["ack"]
        assert reset["caused_by"]["reason"] == "seq-over"
        assert reset["caused_by"]["rule"] == "translated"
        assert reset["caused_by"]["timestamp"] == stray["timestamp"]
        assert not connection.exchange(1), "it was reset"

        wait_for(lambda: b'nfq_guard_caused_resets_total{queue="0"} 1.0\n' in _scraped(host))
        (shown,) = typed(
            tmp_path / "s", "top", "--format", "json", "--count", "1", "--interval", "0.1"
        ).splitlines()
        assert [flow["resets"] for flow in json.loads(shown)["flows"]] == [1]
        tap.drain()
        tap.write_pcap(tmp_path / "h0.pcap")
    _is_on_the_page(tmp_path, reset["caused_by"]["timestamp"], capsys)
    (answer,) = _linked(tmp_path / "h0.pcap", capsys)
    assert (answer["src"], answer["sport"]) == (HOST, REDIRECTED)
    assert answer["caused_by"]["reason"] == "seq-over"
    assert answer["caused_by"]["frame"] < answer["frame"]


def _scraped(host: Namespace) -> bytes:
    with host.entered(), urllib.request.urlopen(f"http://{_METRICS}/metrics", timeout=60) as answer:
        return bytes(answer.read())


def _never_reads(host: Namespace) -> socket.socket:
    with host.entered():
        client = socket.create_connection(("127.0.0.1", 9477), timeout=60)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    return client


def _is_on_the_page(place: Path, when: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = place / "page.html"
    assert main(["report", str(place / "log"), "-o", str(page)]) == 0
    capsys.readouterr()
    html = page.read_text(encoding="utf-8")
    assert "Yes: connections were reset." in html
    cause = when.replace("T", " ")[:23]
    assert f'<td data-label="answers the packet of">{cause}</td>' in html


def _linked(capture: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, Any]]:
    """The frames that `replay` links to the frame that they answer."""
    main(["replay", "--all", "--format", "json", str(capture)])
    for line in capsys.readouterr().out.splitlines():
        frame = json.loads(line)
        if frame.get("caused_by"):
            yield frame
