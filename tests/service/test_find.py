# SPDX-License-Identifier: MIT
"""A command contacts the daemon of its own network namespace."""

import json
import os
import signal
import socket
import subprocess
import sys
from argparse import Namespace as Arguments
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfq_guard.cli import daemon, main
from nfq_guard.errors import NotRunningError
from nfq_guard.service.control.socket_path import find, listen, of_process

_LISTEN = (
    "import socket, sys; listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); "
    "listener.listen(); print(flush=True); sys.stdin.read()"
)


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """A listener in this process."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


@contextmanager
def elsewhere(path: Path) -> Iterator[None]:
    """A listener in a network namespace of its own."""
    path.parent.mkdir(exist_ok=True)
    words = ["unshare", "--net", sys.executable, "-c", _LISTEN, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"\n"
        yield
        process.stdin.close()


def test_the_default_where_a_daemon_of_this_namespace_listens(tmp_path: Path) -> None:
    default = tmp_path / "control.sock"
    with listening(default), listening(tmp_path / "blue" / "control.sock"):
        assert find(default) == (default, True)


def test_an_instance_where_nothing_is_at_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = tmp_path / "control.sock"
    instance = tmp_path / "blue" / "control.sock"
    monkeypatch.setattr(daemon, "DEFAULT", default)
    arguments = Arguments(socket=None)
    with listening(instance):
        assert find(default) == (instance, True)
        daemon.connected(arguments).close()
        daemon.connected(arguments).close()
    said = capsys.readouterr().err
    assert said == f"nfq-guard: the daemon of this network namespace is at {instance}\n"


def test_the_default_where_no_daemon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = tmp_path / "control.sock"
    stale = tmp_path / "blue" / "control.sock"
    with listening(stale):
        pass
    assert find(default) == (default, True)
    monkeypatch.setattr(daemon, "DEFAULT", default)
    with pytest.raises(NotRunningError, match=str(default)):
        daemon.connected(Arguments(socket=None))


@pytest.mark.kernel
def test_a_daemon_of_another_namespace_is_passed_over_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = tmp_path / "control.sock"
    instance = tmp_path / "red" / "control.sock"
    monkeypatch.setattr(daemon, "DEFAULT", default)
    with elsewhere(default), elsewhere(tmp_path / "blue" / "control.sock"):
        daemon.connected(Arguments(socket=None)).close()
        said = capsys.readouterr().err
        assert said == f"nfq-guard: the daemon at {default} is in another network namespace\n"
        with listening(instance):
            assert find(default) == (instance, True)


def test_the_socket_of_a_process_wherever_it_is(tmp_path: Path) -> None:
    """Another socket at which it listens is not taken for it."""
    path = tmp_path / "any name.7"
    with listening(tmp_path / "other"):
        assert of_process(os.getpid()) is None
        listener = listen(path, [])
        assert listener is not None
        with listener:
            assert of_process(os.getpid()) == path


def test_a_process_that_is_gone_has_no_socket() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert of_process(process.pid) is None


@contextmanager
def waiting(script: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a script that SIGHUP ends."""
    script.write_text(
        # The signal may be ignored in the environment of the tests.
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); print(flush=True)\n"
        "signal.pause()\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_daemon_without_a_socket_reloads_a_file_that_has_no_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.toml"
    with waiting(tmp_path / "nfq-guard", "--color", "never", "run") as process:
        words = ["reload", "--pid", str(process.pid), "--config", str(file)]
        file.write_text("[daemon]\nmode = 7\n", encoding="utf-8")
        # As a daemon with a socket that refuses it.
        assert main(words) == 1
        assert "daemon.mode" in capsys.readouterr().err
        assert process.poll() is None
        file.write_text("[daemon]\n", encoding="utf-8")
        assert main([*words, "--format", "json"]) == 0
        assert "no control socket" in json.loads(capsys.readouterr().out)
        assert process.wait(timeout=60) == -signal.SIGHUP
    assert main(words) == 3


@pytest.mark.parametrize("words", [("other", "run"), ("nfq-guard", "top"), ("nfq-guard",)])
def test_only_a_daemon_gets_a_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    file = tmp_path / "file.toml"
    file.write_text("", encoding="utf-8")
    with waiting(tmp_path / words[0], *words[1:]) as process:
        assert main(["reload", "--pid", str(process.pid), "--config", str(file)]) == 3
        error = capsys.readouterr().err
        assert error == f"nfq-guard: the process {process.pid} is not the daemon of nfq-guard\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)


@pytest.mark.parametrize("number", ["0", "-1", "-5", "99999999999", "1_0", "x", "9" * 5000])
def test_only_a_process_id_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    monkeypatch.setattr(os, "kill", pytest.fail)
    monkeypatch.setattr(os, "pidfd_open", pytest.fail)
    with pytest.raises(SystemExit) as ended:
        main(["reload", "--pid", number])
    assert ended.value.code == 2
    assert "--pid: expected a whole number from 1 to 4194304" in capsys.readouterr().err


def test_a_hidden_process_gets_no_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with hidepid, which ProtectProc of a unit sets."""
    with waiting(tmp_path / "nfq-guard", "run") as process:

        def hidden(path: Path, **_: str) -> str:
            raise FileNotFoundError(path)

        monkeypatch.setattr(Path, "read_text", hidden)
        assert main(["reload", "--pid", str(process.pid)]) == 77
        assert f"/proc hides the process {process.pid}" in capsys.readouterr().err
        assert process.poll() is None
