# SPDX-License-Identifier: MIT
import errno
import os
import resource
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.firewall import FailMode
from nfq_guard.service.control import connection as control_connection
from nfq_guard.service.control import server as control
from nfq_guard.service.control.commands import COMMANDS, Commands
from nfq_guard.service.control.protocol import Caller, Request, Response
from nfq_guard.service.control.server import CONNECTIONS_MAX
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import Status
from tests.support.control import Served
from tests.support.daemon import FakeDaemon

Ask = Callable[[bytes], dict[str, Any]]


def test_mode_of_the_socket(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o660


def test_responses_keep_the_order_of_requests(served: Served) -> None:
    with served.connect() as connection:
        connection.send(
            b'{"command": "ping"}\n{"command": "mode", "arguments": {"mode": "enforce"}}'
        )
        assert served.read(connection) == [{"return": "OK", "message": "pong"}]
        connection.send(b'\n{"command": "status"}\n')
        mode, status = served.read(connection)
        assert mode["message"] == {"mode": "enforce"}
        assert status["message"]["mode"] == "enforce"


def test_a_mode_that_the_rules_cannot_follow(served: Served) -> None:
    served.daemon.rules_problem = "a lock is held"
    answer = served.ask(b'{"command": "mode", "arguments": {"mode": "enforce"}}\n')
    assert answer["message"] == {"mode": "enforce", "problem": "a lock is held"}


def test_root_installs_rules_that_the_daemon_may_not(served: Served) -> None:
    wanted = b'{"command": "rules_wanted"}\n'
    assert served.ask(wanted)["message"] == "the daemon changes its rules itself"
    served.daemon.rules_problem = "CAP_NET_RAW is missing"
    served.daemon.mode = Mode.ENFORCE
    given = msgspec.convert(served.ask(wanted)["message"], Settings)
    assert (given.mode, given.fail_mode) == (Mode.ENFORCE, "closed")
    assert served.ask(b'{"command": "rules_not_installed"}\n')["return"] == "OK"
    assert served.daemon.rules_problem
    done = b'{"command": "rules_installed", "arguments": {"fail_mode": "closed"}}\n'
    assert served.ask(done) == {"return": "OK", "message": "noted"}
    assert served.daemon.fail_mode is FailMode.CLOSED


@pytest.mark.parametrize("error", [OSError("gone"), BlockingIOError(), KeyError("x")])
def test_a_request_that_fails_is_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It closes no connection, delays nobody, and does not end the daemon."""

    def fail() -> Status:
        raise error

    monkeypatch.setattr(served.daemon, "status", fail)
    with served.connect() as connection:
        connection.send(b'{"command":"status"}\n{"command":"ping"}\n')
        failed, pong = served.read(connection)
    assert failed["return"] == "NOK"
    assert failed["message"].startswith(f"it failed: {type(error).__name__}: ")
    assert pong["return"] == "OK"
    assert served.failures == [error]


def test_a_pending_reload_delays_only_its_own_client(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "reload", "arguments": {"wait": true}}\n{"command":"ping"}\n')
        connection.shutdown(socket.SHUT_WR)
        assert served.read(connection) == []
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        (respond,) = served.daemon.reloads
        assert respond is not None
        respond(Response.error("wrong"))
        assert [one["return"] for one in served.read(connection)] == ["NOK", "OK"]
        assert served.closed(connection)


def test_a_response_to_a_closed_connection_is_discarded(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "reload", "arguments": {"wait": true}}\n')
        served.turns()
    served.turns()
    (respond,) = served.daemon.reloads
    assert respond is not None
    respond(Response.ok("done"))
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b'{"command": "stop"}\n', "expected one of ping, status, dump, packets, reload, mode"),
        (b'{"command": "ping", "arguments": {"x": 1}}\n', "ping takes no arguments, found 'x'"),
        (b'{"command": "mode"}\n', "mode: expected 'enforce' or 'dry-run', found nothing"),
        (
            b'{"command": "rules_installed"}\n',
            "fail_mode: expected 'open' or 'closed' or 'kernel-drop', found nothing",
        ),
        (
            b'{"command": "rules_installed", "arguments": {"fail_mode": "x"}}\n',
            "fail_mode: expected 'open' or 'closed' or 'kernel-drop', found 'x'",
        ),
        (
            b'{"command": "reload", "arguments": {"wait": 1}}\n',
            "wait: expected true or false",
        ),
        (b'{"command": "dump", "arguments": {"flows": 0}}\n', "a whole number from 1, found 0"),
        (
            b'{"command": "dump", "arguments": {"address": 7}}\n',
            "a string or nothing, found 7",
        ),
        (b'{"command": 7}\n', "expected {"),
        (b'["status"]\n', "expected {"),
        (b'{"command": "ping", "arguments": []}\n', "expected {"),
        (b"\n", "in JSON"),
        (b"status\n", "in JSON"),
        (b"\xff\xfe\x00\n", "in JSON"),
        (b"[" * 60_000 + b"\n", "expected {"),
        (b'{"command": "ping", "arguments": {"x": ' + b"[" * 60_000 + b"\n", "in JSON"),
    ],
    ids=lambda value: value[:50].decode("utf-8", "replace") if isinstance(value, bytes) else "",
)
def test_mistaken_requests_get_the_reason(served: Served, request_line: bytes, said: str) -> None:
    answer = served.ask(request_line)
    assert answer["return"] == "NOK"
    assert len(answer["message"]) < 300
    assert said in answer["message"]
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


def test_a_request_without_end(served: Served) -> None:
    with served.connect() as connection, suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(40):
            connection.send(b"x" * 4096)
            served.turns(2)
    assert served.server.refused == 1
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


def test_half_a_request(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "pi')
        assert served.read(connection) == []
        connection.shutdown(socket.SHUT_WR)
        (answer,) = served.read(connection)
        assert answer == {"return": "NOK", "message": "a request ends with a newline"}
        assert served.closed(connection)


def test_a_client_that_never_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets no further response, at most one is kept for it, and it is closed when idle."""
    with served.connect() as connection:
        connection.send(b'{"command": "status"}\n' * 1000)
        served.turns(300)
        answered = served.server.requests
        served.turns(300)
        assert served.server.requests == answered < 100
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        monkeypatch.setattr(control, "IDLE_S", 0)
        deadline = time.monotonic() + 5
        while served.server.dropped == 0 and time.monotonic() < deadline:
            served.loop.turn(0.1)
        assert served.server.dropped == 1


def test_a_connection_beyond_the_limit_evicts_the_longest_idle(served: Served) -> None:
    connections = [served.connect() for _ in range(CONNECTIONS_MAX)]
    served.turns()
    connections[0].send(b'{"command": "ping"}\n')
    assert served.read(connections[0])
    late = served.connect()
    served.turns()
    assert served.closed(connections[1])
    assert not served.closed(connections[0])
    for connection in [*connections, late]:
        connection.close()


@pytest.mark.parametrize("users", [1, CONNECTIONS_MAX])
def test_readers_cannot_evict_an_operator(
    served: Served, monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    """Whether all are of one user, or each of another one (subordinate ids)."""
    callers = (Caller(1, 70000 + place % users, frozenset()) for place in range(100))
    with monkeypatch.context() as patch, ExitStack() as stack:
        operator = stack.enter_context(served.connect())
        served.turns()
        patch.setattr(control_connection, "caller_of", lambda _end: next(callers))
        readers = _open(served, stack, 2 * CONNECTIONS_MAX)
        assert served.server.dropped == CONNECTIONS_MAX + 1
        patch.undo()
        late = stack.enter_context(served.connect())
        for one in (operator, late):
            one.send(b'{"command": "mode", "arguments": {"mode": "enforce"}}\n')
            assert [each["return"] for each in served.read(one)] == ["OK"]
        assert sum(not served.closed(each) for each in readers) == CONNECTIONS_MAX - 2


def test_a_reader_with_many_connections_evicts_its_own(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = iter([70001, *[70002] * 40])
    with monkeypatch.context() as patch, ExitStack() as stack:
        patch.setattr(
            control_connection, "caller_of", lambda _end: Caller(1, next(uids), frozenset())
        )
        one = stack.enter_context(served.connect())
        served.turns()
        _open(served, stack, 2 * CONNECTIONS_MAX)
        assert not served.closed(one)


def _open(served: Served, stack: ExitStack, count: int) -> list[socket.socket]:
    """Connections that the server has accepted; its backlog has no room for all of them at once."""
    made = []
    for _ in range(count):
        made.append(stack.enter_context(served.connect()))
        served.turns(2)
    return made


def test_thousands_of_clients_leave_nothing(served: Served) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2000):
        with served.connect() as connection:
            connection.send(b'{"comm')
        served.loop.turn(0)
    served.turns(100)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + CONNECTIONS_MAX


def test_rights() -> None:
    commands = Commands(FakeDaemon(), 100)
    own, stranger = os.geteuid(), 65_000

    def asked(command: str, uid: int, *groups: int) -> bool:
        answers: list[bool] = []
        arguments: dict[str, object] = {"mode": "dry-run"} if command == "mode" else {}
        caller = Caller(1, uid, frozenset(groups))
        commands(
            Request(command, arguments),
            caller,
            lambda response: answers.append(response.succeeded),
        )
        (good,) = answers
        return good

    assert all(asked(command, uid, 1) for command in ("status", "mode") for uid in (0, own))
    assert asked("status", stranger, 5, 100)
    assert asked("dump", stranger, 5, 100)
    assert not asked("status", stranger, 5)
    assert not asked("mode", stranger, 100)
    assert not asked("reload", stranger, 100)


@pytest.mark.kernel
def test_supplementary_groups_are_read_from_the_kernel() -> None:
    """A supplementary group is enough for commands that change nothing."""
    tmp_path = Path(tempfile.mkdtemp())
    tmp_path.chmod(0o755)
    served = Served(tmp_path / "s", group=1234)
    os.chown(served.path, 0, 1234)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(10)\n"
        's.send(b\'{"command": "ping"}\\n\'); print(s.recv(999))\n'
        's.send(b\'{"command": "reload"}\\n\'); print(s.recv(999))\n'
    )
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=1234"]
    with subprocess.Popen(
        [*words, "/usr/bin/python3", "-c", code, str(served.path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            served.loop.turn(0.05)
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    served.close()
    tmp_path.rmdir()
    assert "pong" in said[0]
    assert "reload is for root" in said[1]


def test_a_mode_that_does_not_exist(served: Served) -> None:
    answer = served.ask(b'{"command": "mode", "arguments": {"mode": "on"}}\n')
    assert answer["message"] == "mode: expected 'enforce' or 'dry-run', found 'on'"


def test_reload_without_waiting(served: Served) -> None:
    assert served.ask(b'{"command": "reload"}\n')["message"] == "reading the policy"
    assert served.daemon.reloads == [None]


def test_flows_of_a_dump_have_a_limit(served: Served) -> None:
    answer = served.ask(b'{"command": "dump", "arguments": {"address": "::1", "flows": 9999}}\n')
    assert answer["message"] == ["::1", 256]


def test_every_command_is_in_the_table() -> None:
    """The table says who may send a command; a new command is added here too."""
    rights = {name: command.changes for name, command in COMMANDS.items()}
    assert rights == {
        "ping": False,
        "status": False,
        "dump": False,
        "packets": False,
        "reload": True,
        "mode": True,
        "rules_wanted": True,
        "rules_installed": True,
        "rules_not_installed": True,
    }


def test_a_response_has_a_limit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "RESPONSE_MAX_BYTES", 5_000)
    answer = served.ask(b'{"command": "status"}\n')
    assert answer["return"] == "NOK"
    assert "more than 5000 bytes" in answer["message"]


def test_input_during_a_request_has_a_limit(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "reload", "arguments": {"wait": true}}\n')
        served.turns()
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            for _ in range(40):
                connection.send(b"x" * 4096)
                served.turns(2)
    served.turns()
    assert served.server.dropped == 1


def test_clients_together_get_a_share_of_the_time(served: Served) -> None:
    """A client that never pauses is parked, but gets every response."""
    with served.connect() as busy:
        busy.send(b'{"command": "status"}\n' * 400)
        answered = 0
        deadline = time.monotonic() + 30
        while answered < 400 and time.monotonic() < deadline:
            answered += len(served.read_lines(busy))
    assert answered == 400
    assert served.server.dropped == 0


class SlowDaemon(FakeDaemon):
    """A daemon whose status takes more CPU time than requests may accumulate."""

    def status(self) -> Status:
        until = time.thread_time() + 0.08
        while time.thread_time() < until:
            pass
        return super().status()


def test_connections_are_parked_once_the_share_is_spent(tmp_path: Path) -> None:
    """Connections with a new request, a request in progress or an unread response are parked."""
    served = Served(tmp_path / "s", daemon=SlowDaemon())
    with served.connect() as waiting, served.connect() as asking, served.connect() as slow:
        waiting.send(b'{"command": "reload", "arguments": {"wait": true}}\n')
        served.turns()
        (respond,) = served.daemon.reloads
        assert respond is not None
        began = time.monotonic()
        slow.send(b'{"command": "status"}\n{"command": "ping"}\n')
        served.turns(1)
        waiting.send(b'{"command": "ping"}\n')
        asking.send(b'{"command": "ping"}\n')
        answers: list[bytes] = []
        while len(answers) < 3 and time.monotonic() < began + 10:
            answers += served.read_lines(slow) + served.read_lines(asking)
        # 30 ms beyond what is saved up, at a tenth of the time.
        assert time.monotonic() - began > 0.25
        respond(Response.ok("done"))
        assert [one["message"] for one in served.read(waiting)] == ["done", "pong"]
    assert len(answers) == 3
    assert served.server.dropped == 0
    served.close()


def test_a_response_while_its_connection_is_parked(tmp_path: Path) -> None:
    served = Served(tmp_path / "s", daemon=SlowDaemon())
    with served.connect() as waiting, served.connect() as slow:
        waiting.send(b'{"command": "reload", "arguments": {"wait": true}}\n')
        served.turns()
        (respond,) = served.daemon.reloads
        assert respond is not None
        slow.send(b'{"command": "status"}\n')
        served.turns(1)
        waiting.send(b'{"command": "ping"}\n')
        served.turns(2)
        respond(Response.ok("done"))
        deadline = time.monotonic() + 10
        answers: list[bytes] = []
        while len(answers) < 2 and time.monotonic() < deadline:
            answers += served.read_lines(waiting)
    assert [orjson.loads(line)["message"] for line in answers] == ["done", "pong"]
    served.close()


def test_without_descriptors_no_client_is_accepted(served: Served) -> None:
    """The daemon continues, and so do the clients that are connected."""
    with served.connect() as first:
        served.turns()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        highest = max(int(entry) for entry in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
        spare = [os.dup(0) for _ in range(highest)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, limits[1]))
        try:
            late.connect(str(served.path))
            served.turns(3)
            # The client that waits must not turn the loop of the packets.
            began = time.monotonic()
            served.loop.turn(0.2)
            assert time.monotonic() - began > 0.1
            first.send(b'{"command": "ping"}\n')
            assert served.read(first)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in spare:
                os.close(descriptor)
        late.settimeout(0)
        late.send(b'{"command": "ping"}\n')
        until = time.monotonic() + 60
        while not (answer := served.read(late)):
            assert time.monotonic() < until
        assert answer == [{"return": "OK", "message": "pong"}]
        late.close()


def test_a_socket_is_closed_or_made_again_while_descriptors_are_short(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither forgets twice a listener that is not watched for now, nor watches a closed one."""

    def refuse(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(control, "_SHORTAGE_S", 0.01)
        patch.setattr(socket.socket, "accept", refuse)
        with served.connect():
            served.turns(3)
            served.path.unlink()
            served.server._tick(time.monotonic())
    time.sleep(0.02)
    with served.connect() as connection:
        connection.send(b'{"command": "ping"}\n')
        assert served.read(connection) == [{"return": "OK", "message": "pong"}]
        monkeypatch.setattr(control, "_SHORTAGE_S", 0.01)
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", refuse)
            with served.connect():
                served.turns(3)
    served.server.close()
    time.sleep(0.02)
    served.turns(3)


def test_a_reset_connection_is_forgotten(served: Served) -> None:
    connection = served.connect()
    connection.send(b'{"command": "status"}\n' * 50)
    served.turns(5)
    connection.close()  # with unread data: the other end sees a reset
    served.turns(5)
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


PIECES = (
    b'{"command": "ping"}\n',
    b'{"command": "status"}\n',
    b'{"command": "reload", "arguments": {"wait": true}}\n',
    b'{"command": "pi',
    b'ng"}\n',
    b"nonsense\n",
    b"\n",
)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2), st.sampled_from([*PIECES, b"SHUT", b"READ", b"CLOSE"])),
            st.sampled_from(["turn", "respond"]),
        ),
        max_size=40,
    )
)
def test_no_dialogue_leaves_the_table(steps: list[tuple[int, bytes] | str]) -> None:
    """Whatever clients do, each transition is in the table, and other clients are served."""
    with tempfile.TemporaryDirectory() as directory:
        served = Served(Path(directory) / "s")
        clients = [served.connect() for _ in range(3)]
        for step in steps:
            if step == "turn":
                served.turns(2)
            elif step == "respond":
                for respond in filter(None, served.daemon.reloads):
                    respond(Response.ok("done"))
                served.daemon.reloads.clear()
            elif isinstance(step, tuple):
                with suppress(OSError):
                    act(clients[step[0]], step[1])
        served.turns(30)
        assert served.server.dropped == 0
        assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
        for client in clients:
            client.close()
        served.close()


def act(client: socket.socket, what: bytes) -> None:
    if what == b"SHUT":
        client.shutdown(socket.SHUT_WR)
    elif what == b"CLOSE":
        client.close()
    elif what == b"READ":
        client.recv(1 << 20)
    else:
        client.send(what)


def test_a_slow_reader_gets_every_response(tmp_path: Path) -> None:
    """A response that does not fit into the socket is sent in parts, as the client reads."""
    served = Served(tmp_path / "s", daemon=FakeDaemon(status_bytes=1_000_000))
    with served.connect() as connection:
        connection.send(b'{"command": "status"}\n' * 3)
        served.turns(50)
        assert served.server.requests == 1
        answers = b""
        deadline = time.monotonic() + 20
        while answers.count(b"\n") < 3 and time.monotonic() < deadline:
            with suppress(BlockingIOError):
                answers += connection.recv(1 << 16)
            served.turns(1)
    lines = answers.splitlines()
    assert [len(orjson.loads(line)["message"]["config"]) for line in lines] == [1_000_000] * 3
    served.close()


def test_a_client_that_leaves_in_the_middle_of_a_response(tmp_path: Path) -> None:
    served = Served(tmp_path / "s", daemon=FakeDaemon(status_bytes=1_000_000))
    with served.connect() as connection:
        connection.send(b'{"command": "status"}\n')
        served.turns(5)
        connection.recv(100)
    served.turns(5)
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"
    served.close()


def test_a_client_that_leaves_before_a_response(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "reload", "arguments": {"wait": true}}\n')
        served.turns()
        (respond,) = served.daemon.reloads
    assert respond is not None
    respond(Response.ok("done"))
    served.turns()
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


@pytest.mark.parametrize(
    "request_line",
    [
        b'{"command": "mode", "arguments": {"mode": "enforce"}}\n',
        b'{"command": "reload", "arguments": {"wait": true}}\n',
    ],
)
def test_a_client_that_has_given_up_changes_nothing(served: Served, request_line: bytes) -> None:
    """It reported that the daemon does not respond, so its request has no effect afterwards."""
    with served.connect() as connection:
        connection.send(request_line)
    served.turns()
    assert served.daemon.mode is Mode.DRY_RUN
    assert served.daemon.reloads == []
    assert served.ask(b'{"command": "ping"}\n')["return"] == "OK"


def test_a_client_that_only_has_no_more_requests_is_served(served: Served) -> None:
    with served.connect() as connection:
        connection.send(b'{"command": "mode", "arguments": {"mode": "enforce"}}\n')
        connection.shutdown(socket.SHUT_WR)
        assert served.read(connection) == [{"return": "OK", "message": {"mode": "enforce"}}]
