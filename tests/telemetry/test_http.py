# SPDX-License-Identifier: MIT
"""The metrics endpoint, also with misbehaving clients."""

import errno
import http.client
import os
import socket
from collections.abc import Iterator

import pytest

from nfq_guard.telemetry.exposition import Exposition
from nfq_guard.telemetry.http import CLIENT_S, CONNECTIONS_MAX, MetricsServer, listen, respond
from nfq_guard.telemetry.metrics import Stats
from tests.support.observed import observed


class Served:
    """A server with the metrics of one queue, whose clock the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        stats = Stats()
        stats.counters["packets"] = 42
        self.exposition = Exposition(observed(stats))
        listener = listen("127.0.0.1", 0)
        self.address: tuple[str, int] = listener.getsockname()
        self._server = MetricsServer(listener, self.exposition, lambda: self.now)

    def get(self, path: str, method: str = "GET") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.headers["Content-Type"], body

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def test_metrics(served: Served) -> None:
    status, kind, body = served.get("/metrics?name[]=any")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'nfq_guard_packets_total{queue="7"} 42.0' in body
    assert served.get("/metrics", "HEAD")[2] == b""


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/x", "*"])
def test_nothing_else(served: Served, path: str) -> None:
    assert served.get(path)[0] == 404


def test_other_methods(served: Served) -> None:
    assert served.get("/metrics", "POST")[0] == 405


def test_health(served: Served) -> None:
    assert served.get("/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")
    sick = ("queue 7 is stuck", "rules: IPv4: the jump is missing")
    served.exposition.observed = served.exposition.observed._replace(problems=sick)
    status, _, body = served.get("/healthz")
    assert (status, body.decode().splitlines()) == (503, list(sick))


def test_a_loop_that_hangs_is_not_healthy() -> None:
    exposition = Exposition(observed(at=100.0))
    request = b"GET /healthz HTTP/1.1\r\n\r\n"
    assert respond(request, exposition, 105.0).startswith(b"HTTP/1.1 200 OK\r\n")
    late = respond(request, exposition, 106.0)
    assert late.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert late.endswith(b"the packet loop has not turned for 6 s\n")


@pytest.mark.parametrize(
    "head", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics\r\n\r\n", b"\xff\r\n\r\n"]
)
def test_what_is_no_request(served: Served, head: bytes) -> None:
    with served.connect() as client:
        client.sendall(head)
        assert client.recv(100).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_one_rendering_serves_all_scrapes(served: Served) -> None:
    first = served.exposition.text()
    assert served.exposition.text() is first
    served.exposition.observed = served.exposition.observed._replace(at=1.0)
    assert served.exposition.text() is not first


def test_clients_that_say_nothing_never_keep_others_out(served: Served) -> None:
    """The oldest connection is closed to make room."""
    idle = [served.connect() for _ in range(CONNECTIONS_MAX + 5)]
    assert served.get("/healthz")[0] == 200
    gone = [client for client in idle[:6] if client.recv(1) == b""]
    assert len(gone) == 6
    for client in idle:
        client.close()
    assert served.get("/healthz")[0] == 200


def test_a_client_waits_without_cost_while_no_descriptor_is_free(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection stays in the backlog, which keeps the listener readable."""
    accept = socket.socket.accept
    attempts: list[float] = []

    def refuse(listener: socket.socket) -> tuple[socket.socket, object]:
        attempts.append(served.now)
        if len(attempts) > 1:
            return accept(listener)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket.socket, "accept", refuse)
    with served.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        client.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert attempts == [0.0]
        served.now = 1.0
        client.settimeout(60)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_never_reads_has_its_time(served: Served) -> None:
    with served.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert served.get("/metrics")[0] == 200
        served.now = CLIENT_S
        assert client.recv(1) == b""


def test_a_request_without_an_end(served: Served) -> None:
    with served.connect() as client, pytest.raises(ConnectionError):
        client.sendall(b"x" * 100_000_000)


def test_a_client_that_goes_away(served: Served) -> None:
    with served.connect() as client:
        client.sendall(b"GET /met")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert served.get("/healthz")[0] == 200


def test_the_port_is_free_afterwards() -> None:
    made = Served()
    made.close()
    with pytest.raises(ConnectionRefusedError):
        made.connect()
    listen(*made.address).close()


def test_a_port_that_is_taken(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        listen(*served.address)


def test_everywhere_is_both_families() -> None:
    with listen("::", 0) as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=10).close()


def test_everywhere_is_ipv4_alone_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return made(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with listen("::", 0) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"  # noqa: S104 - this is what is tested
    with pytest.raises(OSError, match="not supported"):
        listen("::1", 0)
