# SPDX-License-Identifier: MIT
"""Resources opened beside the queues; a step that fails undoes the earlier steps."""

import errno
import functools
import os
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import orjson
import pytest

from nfq_guard.errors import (
    EXIT_NOT_FINE,
    BusyError,
    NfqGuardError,
    UnavailableError,
    UsageError,
)
from nfq_guard.lab.netns import Namespace
from nfq_guard.policy.default import default_policy
from nfq_guard.service.assemble import open_endpoints, open_log, run
from nfq_guard.service.control.client import Client
from nfq_guard.service.last_good import load
from nfq_guard.service.ledger import PAGE_BYTES, Page
from nfq_guard.service.loop import Loop
from nfq_guard.service.settings import Settings
from nfq_guard.service.worker import open as worker_open
from nfq_guard.telemetry.events import Note
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.sink import LineSink
from tests.support.daemon import FakeDaemon
from tests.support.queue import QUEUE, GuardProcess, kernel_line

Make = Callable[[str], Namespace]


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as made:
        yield made


@pytest.fixture
def port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
    return number


class Endpoints:
    """Settings with every endpoint, whose files are in a directory of the test."""

    def __init__(self, directory: Path, port: int, **changes: str) -> None:
        self.log = directory / "log"
        self.control = directory / "s"
        self.metrics_file = directory / "m.prom"
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.port = port
        given = {
            "control_socket": str(self.control),
            "metrics_listen": f"127.0.0.1:{port}",
            "metrics_file": str(self.metrics_file),
        }
        self.settings = msgspec.structs.replace(Settings(), **(given | changes))
        self.daemon = FakeDaemon()
        self._sink = LineSink(self.log)
        self.events = EventLog(self._sink)

    def logged(self) -> list[dict[str, object]]:
        self._sink.push(0)
        return [orjson.loads(line) for line in self.log.read_bytes().splitlines()]

    def nothing_is_left(self) -> bool:
        with socket.create_server(("127.0.0.1", self.port)):  # else the port is in use
            return not self.control.exists() and not self.metrics_file.exists()


def test_all_endpoints_are_opened_and_closed(tmp_path: Path, port: int, loop: Loop) -> None:
    """The metrics file exists at once, not only after its first interval."""
    made = Endpoints(tmp_path, port)
    made.daemon.stats.counters["packets"] = 5
    close = open_endpoints(made.settings, made.daemon, loop, made.events, ["a note"])
    assert made.control.is_socket()
    text = made.metrics_file.read_text()
    assert 'nfq_guard_packets_total{queue="7"} 5.0' in text
    assert "nfq_guard_reloads_total 3.0" in text
    with urllib.request.urlopen(made.url, timeout=60) as answer:  # noqa: S310 - our own http URL
        assert b'nfq_guard_packets_total{queue="7"} 5.0' in answer.read()
    assert [event["event"] for event in made.logged()] == ["note"]
    close()
    assert made.nothing_is_left()


def test_nothing_is_opened_that_the_settings_do_not_name(
    tmp_path: Path, port: int, loop: Loop
) -> None:
    empty = {"control_socket": "", "metrics_listen": "", "metrics_file": ""}
    made = Endpoints(tmp_path, port, **empty)
    open_endpoints(made.settings, made.daemon, loop, made.events, [])()
    assert made.nothing_is_left()


def test_a_metrics_file_that_cannot_be_undoes_the_rest(
    tmp_path: Path, port: int, loop: Loop
) -> None:
    made = Endpoints(tmp_path, port, metrics_file=str(tmp_path))
    with pytest.raises(UsageError, match=r"daemon\.metrics_file: .*is not a regular file"):
        open_endpoints(made.settings, made.daemon, loop, made.events, [])
    assert made.nothing_is_left()


def test_a_port_in_use_undoes_the_control_socket(tmp_path: Path, port: int, loop: Loop) -> None:
    made = Endpoints(tmp_path, port)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(UsageError, match=r"daemon\.metrics_listen: .*in use"),
    ):
        open_endpoints(made.settings, made.daemon, loop, made.events, [])
    assert made.nothing_is_left()


def test_a_busy_control_socket_opens_nothing(tmp_path: Path, port: int, loop: Loop) -> None:
    made = Endpoints(tmp_path, port)
    first = open_endpoints(
        msgspec.structs.replace(made.settings, metrics_listen="", metrics_file=""),
        made.daemon,
        loop,
        made.events,
        [],
    )
    with pytest.raises(BusyError):
        open_endpoints(made.settings, made.daemon, loop, made.events, [])
    assert not made.metrics_file.exists()
    first()
    assert made.nothing_is_left()


def test_a_failing_metrics_file_is_logged(tmp_path: Path, port: int, loop: Loop) -> None:
    """Its directory does not exist any more: the daemon continues without the file."""
    made = Endpoints(tmp_path, port, metrics_file=str(tmp_path / "missing" / "m.prom"))
    close = open_endpoints(made.settings, made.daemon, loop, made.events, [])
    assert [event["event"] for event in made.logged()] == ["metrics_file_failed"]
    close()


def test_a_vanished_control_socket_is_logged(tmp_path: Path, port: int, loop: Loop) -> None:
    made = Endpoints(tmp_path, port, metrics_listen="", metrics_file="")
    close = open_endpoints(made.settings, made.daemon, loop, made.events, [])
    made.control.unlink()
    for _ in range(20):
        loop.turn(0.1)
    (event,) = made.logged()
    assert (event["event"], event["path"]) == ("control_socket_restored", str(made.control))
    close()


@pytest.mark.parametrize(
    ("form", "start"),
    [("json", '{"event":"note"'), ("auto", '{"event":"note"'), ("eve", '{"timestamp":')],
)
def test_a_log_in_several_files(tmp_path: Path, form: str, start: str) -> None:
    names = tuple(str(tmp_path / name) for name in ("one", "two", "one"))
    events = open_log(msgspec.structs.replace(Settings(), log=names, log_format=form))
    events.emit(Note(text="hello"))
    events.close(0)
    for name in names:
        (line,) = Path(name).read_text().splitlines()
        assert line.startswith(start)


def test_a_log_for_people(tmp_path: Path) -> None:
    name = str(tmp_path / "log")
    events = open_log(msgspec.structs.replace(Settings(), log=name, log_format="console"))
    events.emit(Note(text="hello"))
    events.close(0)
    assert "{" not in Path(name).read_text()


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(Settings(), log=str(tmp_path))
    with pytest.raises(UsageError, match=r"daemon\.log: .* cannot be opened: Is a directory"):
        open_log(settings)


def test_a_file_of_events_that_cannot_be_opened(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(Settings(), events_file=str(tmp_path))
    wrong = r"daemon\.events_file: .* cannot be opened: Is a directory"
    with pytest.raises(UsageError, match=wrong):
        open_log(settings)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_is_no_mistake_of_the_settings(
    tmp_path: Path, port: int, loop: Loop, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """After exit status 2 systemd would not restart the daemon."""

    def short(*_: object, **_options: object) -> int:
        raise OSError(code, os.strerror(code))

    made = Endpoints(tmp_path, port)

    def endpoints() -> object:
        return open_endpoints(made.settings, made.daemon, loop, made.events, [])

    logged = msgspec.structs.replace(Settings(), log=str(tmp_path / "l"))
    recorded = msgspec.structs.replace(Settings(), events_file=str(tmp_path / "e"))
    attempts: list[tuple[str, Callable[[], object]]] = [
        ("nfq_guard.outfile.opened", lambda: open_log(logged)),
        ("nfq_guard.outfile.opened", lambda: open_log(recorded)),
        ("nfq_guard.policyfile.os.open", lambda: load(tmp_path / "c.toml", tmp_path / "copy")),
        ("nfq_guard.service.control.socket_path.exclusive", endpoints),
        ("nfq_guard.service.assemble.listen_http", endpoints),
        ("nfq_guard.service.assemble.MetricsFile", endpoints),
    ]
    for name, attempt in attempts:
        with monkeypatch.context() as patch:
            patch.setattr(name, short)
            with pytest.raises(NfqGuardError, match=os.strerror(code)) as error:
                attempt()
        assert error.value.exit_status == EXIT_NOT_FINE


def test_a_configuration_with_mistakes_opens_nothing(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[daemon]\nlog = "{tmp_path / "log"}"\nqueue = -1\n')
    with pytest.raises(NfqGuardError, match=r"daemon\.queue"):
        run(config, lambda settings: settings)
    assert not (tmp_path / "log").exists()


@pytest.mark.kernel
def test_a_queue_whose_worker_cannot_be_made_is_unbound(
    namespace: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt binds it; the loop has no timer of the first."""
    inside = namespace("open")
    sink = LineSink(tmp_path / "log")
    events = EventLog(sink)
    settings = msgspec.structs.replace(Settings(), queue=QUEUE)

    def refuse(*_: object) -> None:
        raise UnavailableError("no netfilter netlink")

    with inside.entered(), Loop() as loop:
        attempt = functools.partial(
            worker_open.open_queue,
            settings,
            queue_num=QUEUE,
            policy=default_policy(),
            events=events,
            loop=loop,
            notes=[],
            instance="test",
            page=Page(bytearray(PAGE_BYTES)),
        )
        with monkeypatch.context() as patch:
            patch.setattr(worker_open, "open_offloader", refuse)
            patch.setattr(worker_open, "_SYSCTLS_S", 0.001)
            with pytest.raises(UnavailableError):
                attempt()
            patch.delattr(worker_open, "_sysctls")
            until = time.monotonic() + 0.05
            assert not loop.run_until(lambda: False, lambda: until)
        server = attempt()
        server.begin()
        server.finish(lambda: False)
    sink.close(0)


@pytest.mark.kernel
def test_a_daemon_that_cannot_open_its_metrics_file_leaves_nothing(
    namespace: Make, tmp_path: Path
) -> None:
    """Queue, control socket and rules are released, and the error names the setting."""
    inside = namespace("unwind")
    config = tmp_path / "c.toml"
    control = tmp_path / "s"
    config.write_text(
        f'[daemon]\nqueue = {QUEUE}\ncontrol_socket = "{control}"\nmetrics_file = "{tmp_path}"\n'
    )
    before = inside.run("iptables-save").stdout
    with GuardProcess(inside, tmp_path / "log", "--config", str(config)) as guard:
        assert guard.process.wait(timeout=60) == 2
        assert "daemon.metrics_file" in guard.stderr()
        (failed,) = guard.events("daemon_failed")
        assert "traceback" not in failed
    assert not control.exists()
    assert inside.run("iptables-save").stdout == before
    with pytest.raises(KeyError):
        kernel_line(inside)


@pytest.mark.kernel
def test_the_metrics_file_of_a_daemon(namespace: Make, tmp_path: Path) -> None:
    """It exists while the daemon runs; at the end it is removed, as its values are outdated."""
    inside = namespace("metrics")
    metrics = tmp_path / "m.prom"
    control = tmp_path / "s"
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nqueue = {QUEUE}\nrules = "none"\ncontrol_socket = "{control}"\n'
        f'metrics_file = "{metrics}"\n'
    )
    with GuardProcess(inside, tmp_path / "log", "--config", str(config)).ready() as guard:
        assert f'nfq_guard_packets_total{{queue="{QUEUE}"}} 0.0' in metrics.read_text()
        with Client(control) as client:
            assert client.request("ping") == "pong"
        assert guard.stop() == 0
    assert not metrics.exists()


def test_a_journal_without_a_socket_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines wait, and no other output has them."""
    path = tmp_path / "socket"
    monkeypatch.setattr("nfq_guard.service.assemble.SOCKET", path)
    settings = msgspec.structs.replace(Settings(), log="journal")
    open_log(settings).close(0.0)
    assert capsys.readouterr().err == f"nfq-guard: daemon.log: journal: there is no {path}\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        open_log(settings).close(0.0)
    assert capsys.readouterr().err == ""
