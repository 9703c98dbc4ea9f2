# SPDX-License-Identifier: MIT
"""Inputs that are damaged, of another version, huge, or written to deceive.

What a terminal gets holds no control character, whatever the input; the page, no markup.
"""

import gzip
import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_guard.cli import escaping, main, terminal
from nfq_guard.cli.dump import event_line
from nfq_guard.cli.status import lines, printable
from nfq_guard.cli.top_flow import key_of
from nfq_guard.cli.top_view import View
from nfq_guard.lab.netns import Namespace
from nfq_guard.names import visible
from nfq_guard.service.status import ActingPolicy, ReloadStatus, RulesState, decode
from nfq_guard.telemetry.console import Console
from nfq_guard.telemetry.events import (
    DaemonFailed,
    Event,
    Note,
    PacketJudged,
    RulesChanged,
    Stopped,
)
from nfq_guard.telemetry.palette import Style
from tests.support import captures
from tests.support.conversation import Conversation
from tests.support.events import event
from tests.support.queue import import_path
from tests.support.status import daemon_status, rules_status
from tests.support.top import flow, text

# A colour, the same by one character, a title, a bell, another line, and text that runs backwards.
EVIL: Final = "\x1b[31m\x9b31m\x1b]0;x\x07\r\b\x7f\u202e\u2066\u2028</script><script>alert(1)"
OWN: Final = re.compile("\x1b\\[[0-9]+m")
_MEMORY_BYTES: Final = 400 << 20


def is_clean(shown: str) -> bool:
    """Whether a terminal would show a text as it is."""
    return all(letter.isprintable() or letter == "\n" for letter in shown)


def test_what_is_not_printable_stands_as_an_escape() -> None:
    assert visible("plain text, dé\u0301jà vu") == "plain text, dé\u0301jà vu"
    assert visible("a\x1b[0m\n\x9b\u202e") == r"a\x1b[0m\n\x9b\u202e"
    assert is_clean(visible(EVIL))


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    "made",
    [
        msgspec.convert(event(rule=EVIL, **{"in": EVIL, "out": EVIL}), PacketJudged),
        Note(text=EVIL),
        RulesChanged(differences=(EVIL,), reinstalled=False),
        DaemonFailed(problem=EVIL, traceback=f"line 1\nline 2 {EVIL}\n"),
        Stopped(queues=[], reasons={}, actions={}, rules={EVIL: 1}, counters={}),
    ],
)
def test_console(made: Event, colour: bool) -> None:
    line = Console(colour=colour)(None, "", {"event": made, "at": "2026-01-01T00:00:00"}).decode()
    # Its own colours end with the action or the level.
    *_, shown = line.rsplit("\x1b[0m", 1)
    assert is_clean(shown)
    assert "alert(1)" in shown


@pytest.mark.parametrize("reason", ["seq-over", "bad-transition", "no-entry"])
def test_top_and_dump(reason: str) -> None:
    status = daemon_status(
        policy=ActingPolicy(source=EVIL, digest=EVIL, rules=1, restart_for=()),
        rules=rules_status(RulesState.DIFFER, EVIL),
        evidence=EVIL,
        reasons={EVIL: {"drop": 3}},
    )
    made = flow(event(reason=reason, rule=EVIL, state=EVIL, nat=EVIL), reasons={EVIL: 3})
    view = View()
    view.take(status, [made], 1.0)
    assert is_clean(text(view.lines(40, 300)))
    view.choice.opened = key_of(made)
    assert is_clean(text(view.lines(40, 300)))
    view.problem = EVIL
    assert is_clean(text(view.lines(40, 300)))
    assert is_clean(event_line(made["events"][-1]))


def test_status() -> None:
    """A key of a refused file, a rule of the host and a path may be written to deceive."""
    status = daemon_status(
        config=EVIL,
        policy=ActingPolicy(source=EVIL, digest=EVIL, rules=1, restart_for=()),
        rules=rules_status(RulesState.DIFFER, EVIL),
        last_reload=ReloadStatus(at="2026-01-01T00:00:00Z", mistakes=(f"policy.{EVIL}: no key",)),
        reasons={EVIL: {"drop": 3}},
    )
    assert not all(map(is_clean, lines(status)))
    shown = lines(decode(printable(msgspec.json.decode(msgspec.json.encode(status)))))
    assert all(map(is_clean, shown)), shown
    assert sum("alert(1)" in line for line in shown) >= 4


@pytest.mark.parametrize("action", ["verify", "remove"])
@pytest.mark.kernel
def test_rules(action: str, tmp_path: Path) -> None:
    """The command that repairs the rules names the file, and a mistake the key."""
    name = tmp_path / EVIL.replace("/", "")
    key = f"{json.dumps(EVIL)} = 1\n" if action == "remove" else ""
    name.write_text(f"[daemon]\n{key}[policy]\n", encoding="utf-8")
    words = [sys.executable, "-m", "nfq_guard", "rules", action, "--config", str(name)]
    with Namespace("host") as host:
        done = subprocess.run(
            host.argv(words), env={**os.environ, "PYTHONPATH": import_path()},
            capture_output=True, check=False,
        )  # fmt: skip
    shown = (done.stdout + done.stderr).decode()
    assert "alert(1)" in shown
    assert is_clean(shown), shown


@pytest.fixture
def capture(tmp_path: Path) -> str:
    """A capture whose name, interface and comments are written to deceive."""
    talk = Conversation()
    talk.open()
    talk.server("PA", 1, 1, length=100)
    talk.server("PA", 9_000_000, 1, length=100)
    talk.client("R", 1)
    plain = tmp_path / "talk.pcap"
    talk.save(plain)
    octets = plain.read_bytes()
    evil = EVIL.encode()
    blocks = [
        captures.section(),
        captures.block(
            1,
            struct.pack("<HHI", 101, 0, 0)
            + captures.options([(2, evil), (3, evil), (9, b"\x06"), (1, evil)]),
        ),
    ]
    at = 24
    while at < len(octets):
        length = struct.unpack_from("<I", octets, at + 8)[0]
        blocks.append(captures.enhanced(octets[at + 16 : at + 16 + length]))
        at += 16 + length
    path = tmp_path / f"{EVIL.replace('/', '')}\udc9b.pcapng"
    path.write_bytes(b"".join(blocks))
    return str(path)


@pytest.mark.parametrize(
    "words",
    [
        ["replay"],
        ["replay", "--all"],
        ["replay", "--summary"],
        ["replay", "--flows"],
        ["replay", "--interface", EVIL],
        ["replay", "--interface", "nowhere"],
        ["replay", "--interface", EVIL + "x"],
        ["whatif", "--policy", "preset:default"],
        ["report", "-o", "page.html"],
        ["replay", "--format", "json"],
        ["replay", "--format", "json", "--flows", "--summary"],
        ["whatif", "--policy", "preset:default", "--format", "json"],
        ["check"],
        ["check", "--format", "json"],
        ["why"],
        ["why", "--format", "json"],
        ["dump", "--events"],
        ["status", "--socket"],
        ["reload", "--config"],
        ["rules", "show", "--config"],
        ["rules", "show", "--format", "json", "--config"],
        ["doctor", "--nonesuch"],
    ],
)
@pytest.mark.parametrize("coloured", [False, True])
def test_captures(
    capture: str,
    coloured: bool,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    colour(monkeypatch, wanted=coloured)
    with suppress(SystemExit):
        assert main([*words, capture]) in {0, 2, 3}
    shown = capsys.readouterr()
    assert is_clean(OWN.sub("", shown.out + shown.err) if coloured else shown.out + shown.err)
    assert shown.out or shown.err
    if "json" in words:
        assert all(map(json.loads, shown.out.splitlines()))


def colour(patch: pytest.MonkeyPatch, *, wanted: bool) -> None:
    """Decide on colours; `--color` of an earlier test has changed the environment."""
    patch.delenv("NO_COLOR", raising=False)
    patch.setenv("FORCE_COLOR" if wanted else "NO_COLOR", "1")


@given(st.text(st.characters(), max_size=40), st.booleans())
def test_whatever_a_command_writes(said: str, coloured: bool) -> None:
    """Only the colours of our own control the terminal, and JSON holds the text."""
    with pytest.MonkeyPatch.context() as patch:
        colour(patch, wanted=coloured)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            escaping.install()
            terminal.write_line(f"{terminal.paint('ours', Style.RED)} {said}\x1b[31m{said}")
            terminal.write_line(terminal.paint(f"\x1b[0m{said}", Style.BOLD))
            sys.stderr.writelines([said, f"\x1b[31m{said}"])
            terminal.complain(said)
            print(said, file=sys.stderr)  # noqa: T201 - as argparse and a traceback do
            shown = out.getvalue()
            terminal.write_json({said: [said]})
        ours = ["\x1b[31m", "\x1b[0m", "\x1b[1m", "\x1b[0m"] if coloured else []
        assert re.findall(r"\x1b\[[0-9]*m", shown) == ours
        record = out.getvalue()[len(shown) :]
        assert is_clean(OWN.sub("", shown) + err.getvalue() + record)
        assert record.count("\n") == 1
        same = re.sub("[\ud800-\udfff]", lambda found: visible(found[0]), said)
        assert json.loads(record) == {same: [same]}


def test_explain(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    for frame in ("5", "6", "999"):
        assert main(["explain", capture, frame]) in {0, 2}
        shown = capsys.readouterr()
        assert is_clean(shown.out + shown.err)


def test_two_captures_are_named(capture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--all", capture, capture]) == 0
    assert is_clean(capsys.readouterr().out)


def of_other_versions() -> Iterator[dict[str, Any]]:
    """An event of the first daemons, one of today, and ones of versions to come."""
    first = event()
    for name in ("mark", "status", "ct_mark"):
        del first[name]
    yield first
    yield event()
    yield event(hint="a field of tomorrow", window=None)
    yield event(reason="of-tomorrow", breach=None)
    yield {"event": "of_tomorrow", "anything": [1, {}]}


Read = Callable[[Path], list[str]]
READERS: Final = {
    "whatif": ["whatif", "--policy", "preset:default"],
    "report": ["report", "-o", "page.html"],
}


Shown = tuple[str, str, str]


@pytest.fixture
def shown_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, bytes], Shown]:
    """What a reader shows of a recording: its output, its errors and its page, if it makes one."""
    monkeypatch.chdir(tmp_path)

    def shown_of(reader: str, octets: bytes) -> Shown:
        Path("events.jsonl").write_bytes(octets)
        assert main([*READERS[reader], "events.jsonl"]) == 0
        shown = capsys.readouterr()
        page = Path("page.html")
        return shown.out, shown.err, page.read_text(encoding="utf-8") if page.exists() else ""

    return shown_of


def lines_of(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in events)


@pytest.mark.parametrize("reader", READERS)
def test_events_of_other_versions(reader: str, shown_of: Callable[[str, bytes], Shown]) -> None:
    out, errors, page = shown_of(reader, lines_of(of_other_versions()))
    assert ("3 INVALID packets" if reader == "whatif" else "3 packets") in out
    assert "skipped 1 line" in (errors if reader == "whatif" else page)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_events(
    reader: str, packed: bool, shown_of: Callable[[str, bytes], Shown]
) -> None:
    """Events that are there count, and the missing part is reported."""
    whole = lines_of(event(seq=number) for number in range(2000))
    told = "".join(shown_of(reader, gzip.compress(whole)[:-200] if packed else whole[:-200]))
    assert "not read to the end" in told if packed else "skipped 1 line" in told


@pytest.mark.parametrize("reader", READERS)
def test_hostile_events(reader: str, shown_of: Callable[[str, bytes], Shown]) -> None:
    evil = {"rule": EVIL, "in": EVIL, "out": EVIL}
    lines = [
        event(**evil),
        event(**evil, shadow={"rule": EVIL, "action": "drop"}),
        event(**evil, src=EVIL),
        event(**evil, timestamp=EVIL),
        event(**evil, lookup_error=EVIL),
        {"event": EVIL},
    ]
    out, errors, page = shown_of(reader, lines_of(lines))
    assert is_clean(out + errors)
    assert "<script>alert" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("unit", [b"x" * 60_000 + b"\n", b"\0" * 65_536], ids=["lines", "zeros"])
def test_more_than_memory_has(reader: str, unit: bytes, tmp_path: Path) -> None:
    """A gigabyte through a pipe, in lines or in one, between two events."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nfq_guard", *READERS[reader], "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(  # noqa: PLW1509 - no thread of ours holds a lock
            resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES)
        ),
    )
    assert process.stdin is not None
    line = json.dumps(event()).encode()
    process.stdin.write(line + b"\n")
    for _ in range((1 << 30) // len(unit)):
        process.stdin.write(unit)
    process.stdin.write(b"\n" + line + b"\n")
    shown, _ = process.communicate(timeout=100)
    assert process.returncode == 0, shown
    assert b"2 INVALID packets" in shown or b"2 packets" in shown
