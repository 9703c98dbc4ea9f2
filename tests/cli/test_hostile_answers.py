# SPDX-License-Identifier: MIT
"""Commands whose daemon responds with something else than a daemon of this version does."""

import copy
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from nfq_guard.cli import main
from nfq_guard.lab.pace import limit
from tests.support.events import event

_FLOW: Final = {
    "flow": {"proto": "tcp", "a": "10.0.0.1", "a_port": 80, "b": "10.0.0.2", "b_port": 4000},
    "first": "2026-11-23T02:00:00.000000Z",
    "last": "2026-11-23T02:00:00.000000Z",
    "packets": 1,
    "reasons": {"seq-over": 1},
    "resets": 0,
    "events": [event()],
}
_PACKET: Final = {
    "time_ns": 10**18,
    "interface": "eth0",
    "wire_len": 60,
    "octets": "RQAAPA==",
    "comment": "seq-over",
}
# Of each command, a response that it accepts.
_ACCEPTED: Final = {
    "mode enforce": {"mode": "enforce"},
    "reload": {"policy": "0123456789abcdef", "rules": 3, "restart_for": ["queue"]},
    "dump": [_FLOW],
    "dump 10.0.0.1:80": [_FLOW],
    "dump --pcap {}": [_PACKET],
    "dump --hash-addresses --pcap {}": [_PACKET],
}
_WRONG: Final[tuple[object, ...]] = (
    None,
    True,
    -1,
    2**63,
    2**200,
    1e300,
    "",
    "\x1b[2J",
    "x" * 99_999,
    [],
    {},
    [None],
)


@contextmanager
def answering(path: Path) -> Iterator[list[object]]:
    """A daemon whose response to any request is the only element of the list that it yields.

    Octets are sent as they are, in place of the message.
    """
    message: list[object] = [None]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                with suppress(OSError), listener.accept()[0] as connection:
                    if not connection.recv(1 << 16):
                        return
                    said = message[0]
                    text = said if isinstance(said, bytes) else json.dumps(said).encode()
                    connection.sendall(b'{"return": "OK", "message": ' + text + b"}\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield message
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            thread.join(timeout=limit(60))


def damaged(value: Any, source: random.Random) -> Any:  # noqa: ANN401 - any JSON
    """A copy in which one value, at any depth, is another or is missing."""
    copied = copy.deepcopy([value])
    place: Any = copied
    key: Any = 0
    while isinstance(place[key], (dict, list)) and place[key] and source.random() < 0.8:
        place = place[key]
        key = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
    if source.random() < 0.3 and place is not copied:
        del place[key]
    else:
        place[key] = source.choice(_WRONG)
    return copied[0]


@pytest.mark.parametrize("command", _ACCEPTED)
def test_damaged_responses_are_printed_or_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = random.Random(7)  # noqa: S311 - damage
    words = [*command.format(tmp_path / "p.pcapng").split(), "--socket", str(tmp_path / "s")]
    with answering(tmp_path / "s") as message:
        message[0] = _ACCEPTED[command]
        assert main(words) == (1 if command == "reload" else 0)
        for _ in range(200):
            message[0] = damaged(_ACCEPTED[command], source)
            assert main(words) in {0, 1, 2}, message[0]
            said = capsys.readouterr()
            assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize("depth", [100, 500, 980, 100_000])
@pytest.mark.parametrize("command", ["status", *_ACCEPTED])
def test_deeply_nested_responses_are_refused_in_one_line(
    command: str, depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command.format(tmp_path / "p.pcapng").split(), "--socket", str(tmp_path / "s")]
    with answering(tmp_path / "s") as message:
        for nested in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            # Alone, and as a key that the command does not know.
            for text in (nested, b'{"more": ' + nested + b"}", b'[{"more": ' + nested + b"}]"):
                message[0] = text
                assert main(words) == 2
                said = capsys.readouterr().err
                assert (
                    said == f"nfq-guard: {tmp_path / 's'}: expected a control socket of nfq-guard\n"
                )
