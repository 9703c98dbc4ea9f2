# SPDX-License-Identifier: MIT
"""The rules that root installs for a daemon that may not change them."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from nfq_guard.cli import main, rules_of_root
from nfq_guard.engine import Mode
from nfq_guard.lab.netns import Namespace
from nfq_guard.service.control.client import Client
from nfq_guard.service.settings import Settings
from tests.support.queue import QUEUE, GuardProcess

pytestmark = pytest.mark.kernel


@contextmanager
def daemon(path: Path, **messages: object) -> Iterator[list[str]]:
    """A daemon with a response to each command; it refuses others. Yields the commands."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            # The client, and whoever looks at the credentials of the socket.
            while asked[-1:] != ["bye"]:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as lines:
                    for line in lines:
                        asked.append(json.loads(line)["command"])
                        known = asked[-1] in messages
                        word = "OK" if known else "NOK"
                        message = messages.get(asked[-1], "not here")
                        answer = json.dumps({"return": word, "message": message})
                        connection.sendall(answer.encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        with Client(path) as client, pytest.raises(Exception, match="not here"):
            client.request("bye")
        thread.join(timeout=60)
        asked.pop()


@pytest.fixture
def inside(namespace: Callable[[str], Namespace]) -> Namespace:
    return namespace("ofroot")


def test_the_rules_of_the_new_mode(
    inside: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mode` and `reload` install them, so nothing is left to do."""
    given = msgspec.to_builtins(Settings(mode=Mode.ENFORCE, fail_mode="closed", backend="legacy"))
    given |= {"queue": 11}
    path = tmp_path / "s"
    mode = {"mode": "enforce", "problem": "CAP_NET_RAW is missing"}
    reload = {"policy": "abc", "rules": 3, "rules_problem": "CAP_NET_RAW is missing"}
    with daemon(
        path, mode=mode, reload=reload, rules_wanted=given, rules_installed="noted"
    ) as asked:
        for words in (["mode", "enforce"], ["reload"]):
            inside.run("iptables-legacy", "-t", "mangle", "-F")
            asked.clear()
            with inside.entered():
                assert main([*words, "--socket", str(path)]) == 0
            assert asked == [words[0], "rules_wanted", "rules_installed"]
            saved = inside.run("iptables-legacy-save").stdout
            assert "--queue-num 11\n" in saved, "fail mode closed"
    assert capsys.readouterr().err == ""


def test_what_root_cannot_do_either(inside: Namespace, tmp_path: Path) -> None:
    """Here the rules in place are those of another daemon."""
    given = msgspec.to_builtins(Settings(mode=Mode.ENFORCE, queue=QUEUE + 1))
    path = tmp_path / "s"
    with (
        GuardProcess(inside, tmp_path / "log").ready() as guard,
        daemon(path, rules_wanted=given, rules_not_installed="noted") as asked,
        Client(path) as client,
    ):
        with inside.entered():
            left = rules_of_root.install(client, path, "a problem")
        assert left is not None
        assert left.startswith("a problem; root could not install them either: ")
        assert asked == ["rules_wanted", "rules_not_installed"]
        assert guard.stop() == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mode": "dance"}, "the daemon has settings of another version: Invalid enum"),
        ({"queues": "3-1"}, "daemon.queues: expected A-B"),
    ],
)
def test_settings_that_no_daemon_has(tmp_path: Path, changed: dict[str, str], says: str) -> None:
    """Those of another version, and what no configuration may have."""
    path = tmp_path / "s"
    given = msgspec.to_builtins(Settings()) | changed
    with (
        daemon(path, rules_wanted=given, rules_not_installed="noted") as asked,
        Client(path) as client,
    ):
        left = rules_of_root.install(client, path, "a problem")
    assert left is not None
    assert left.startswith("a problem; ")
    assert says in left
    assert asked == ["rules_wanted", "rules_not_installed"]


def test_a_daemon_that_changes_its_rules_itself(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with daemon(path) as asked, Client(path) as client:
        assert rules_of_root.install(client, path, "a lock is held") == "a lock is held"
    assert asked == ["rules_wanted"]
