# SPDX-License-Identifier: MIT
"""Behaviour common to all commands: one-line errors, exit statuses, and lost output."""

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_guard import __version__
from nfq_guard.cli import COMMANDS, main, parser_of
from nfq_guard.cli.parser import subparsers
from tests.support.conversation import Conversation

COMMAND = [sys.executable, "-m", "nfq_guard"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path.cwd())}
SPEAKING = ["check", "--explain-rule", "preset:default"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "'nonsense'"),
        (["statsu"], "(did you mean 'status'?) (see nfq-guard --help)"),
        (["mode", "enforc"], "(did you mean 'enforce'?) (see nfq-guard mode --help)"),
        (["rules", "instal"], "(did you mean 'install'?)"),
        (["rules", "status"], "invalid choice: 'status' (did you mean 'verify'?) (see nfq-guard r"),
        (["rules", "uninstall"], "(did you mean 'remove'?)"),
        (["replay", "x", "--sumary"], "unrecognized arguments: --sumary (did you mean '--summary'"),
        (["check", "--nothing-like-it"], "unrecognized arguments: --nothing-like-it (see"),
        (
            ["run", "--queue", "x"],
            "argument --queue: expected a whole number from 0 to 65535, found 'x' (see",
        ),
        (["run", "extra"], "unrecognized arguments: extra (see nfq-guard run --help)"),
        (["rules"], "the following arguments are required: ACTION (see nfq-guard rules --help)"),
        (["lab", "run", "nowhere"], "'nowhere'"),
        (
            ["lab", "run", "asymmetric", "--mitigatoin", "guard"],
            "--mitigatoin guard (did you mean '--mitigation'?) (see nfq-guard lab run --help)",
        ),
        (["status", "--json"], "unrecognized arguments: --json (see nfq-guard status --help)"),
        (["--verison"], "unrecognized arguments: --verison (did you mean '--version'?)"),
        # An option in part is not taken for it.
        (
            ["run", "--mod", "enforce"],
            "unrecognized arguments: --mod enforce (did you mean '--mode'?)",
        ),
        (["--colour", "always", "status"], "arguments: --colour (did you mean '--color'?)"),
        (["-x"], "unrecognized arguments: -x (see nfq-guard --help)"),
        (["a b"], "invalid choice: 'a b' (choose from"),
        (["replay", "x", "--assume-nat", "foo"], "(choose from 'none', 'snat', 'dnat', 'both')"),
        (["rules", "show", "--backend", "nftable"], "(did you mean 'nftables'?)"),
        (["rules", "show", "--fail-mode", "clsed"], "(did you mean 'closed'?)"),
        (["rules", "show", "--queue", "70000"], "--queue: expected a whole number from 0 to 65535"),
        (["rules", "show", "--max-rate-pps", "-1"], "--max-rate-pps: expected a whole number"),
        (["--debg", "check"], "unrecognized arguments: --debg (did you mean '--debug'?)"),
        (
            ["check", "--version"],
            "--version (--version goes before the command) (see nfq-guard check --help)",
        ),
        (
            ["replay", "--kernle"],
            "unrecognized arguments: --kernle (did you mean '--kernel'?) (see nfq-guard replay",
        ),
        (["explain", "--", "--kernle"], "the following arguments are required: FRAME (see"),
        (
            ["explain", "--kern", "6.1"],
            "unrecognized arguments: --kern (did you mean '--kernel'?) (see nfq-guard explain",
        ),
    ],
)
def test_a_usage_error_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nfq-guard: ")
    assert message in line


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reproduce the classic connection resets" in shown.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["help"], "usage: nfq-guard "),
        (["help", "mode"], "usage: nfq-guard mode "),
        (["-V"], f"nfq-guard {__version__}"),
    ],
)
def test_usual_ways_to_ask_for_help_and_version(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(text)


def test_a_suggestion_stands_instead_of_all_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["statsu"])
    assert "choose from" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "choose from" in capsys.readouterr().err


@pytest.mark.parametrize("most", range(6, 13))
def test_too_few_descriptors_are_one_line(most: int, tmp_path: Path) -> None:
    """Wherever the command is when it needs one more."""
    config = tmp_path / "config.toml"
    config.write_text(
        f'[daemon]\nqueue = 65000\ncontrol_socket = "{tmp_path}/control"\n'
        '[policy]\ninclude = "preset:default"\n',
        encoding="utf-8",
    )
    done = subprocess.run(
        ["prlimit", f"--nofile={most}", *COMMAND, "rules", "show", "--config", config],
        check=False,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (done.returncode != 0)
    assert done.returncode in {0, 1}, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--debug", "run", "--config", "/nonexistent"],
        ["run", "--config", "/nonexistent", "--debug"],
    ],
)
def test_debug_adds_a_traceback_and_keeps_the_status(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback ")
    assert "/nonexistent: " in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("before", "after", "environment", "coloured"),
    [
        ([], [], {}, False),
        (["--color", "always"], [], {}, True),
        ([], ["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, True),
        ([], ["--color=never"], {"FORCE_COLOR": "1"}, False),
        (["--color", "auto"], [], {"FORCE_COLOR": "1"}, True),
        ([], [], {"CLICOLOR_FORCE": "1"}, True),
        ([], [], {"CLICOLOR_FORCE": "0"}, False),
    ],
)
def test_colours_by_option_and_environment(
    before: list[str], after: list[str], environment: dict[str, str], coloured: bool
) -> None:
    plain = {name: value for name, value in ENVIRONMENT.items() if name != "NO_COLOR"}
    done = subprocess.run(
        [*COMMAND, *before, "check", "preset:default", *after],
        capture_output=True,
        check=True,
        env={**plain, **environment},
    )
    assert (b"\x1b[" in done.stdout) is coloured


def test_help_capitalises_only_the_first_letter_of_a_summary() -> None:
    done = subprocess.run(
        [*COMMAND, "report", "--help"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "Make an HTML report" in done.stdout
    assert all(summary[0].islower() for summary in COMMANDS.values())


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *SPEAKING], stdout=full, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
        )
    assert done.returncode == 1
    assert done.stderr == b"nfq-guard: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("words", [SPEAKING, ["--help"], ["--version"]])
def test_a_closed_pipe_is_silent(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_closed_standard_output_is_not_an_error() -> None:
    """A file that is opened later must not get standard output's number and its output."""
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *SPEAKING]
    done = subprocess.run(words, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "{}"),
        ("why", "{}"),
        ("whatif", "{}", "--policy", "preset:default"),
        ("report", "{}", "-o", "/dev/null"),
    ],
)
def test_an_interrupt_is_exit_status_130(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A script must not mistake half of the output for all of it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = tuple(word.format(fifo) for word in words)
    with subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        with fifo.open("wb"):  # returns once it is being read
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def loading(
    command: str, number: signal.Signals, *words: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that receives a signal just before it imports its module."""
    code = (
        "import os, sys\n"
        "class Signal:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == 'nfq_guard.cli.{command}': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Signal)\n"
        "from nfq_guard.cli import main\n"
        f"sys.exit(main(['{command}', *sys.argv[1:]]))"
    )
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *words],
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_an_early_reload_signal_is_ignored(number: signal.Signals) -> None:
    """A log rotation may signal while the daemon is still importing."""
    done = loading("run", number, "--config", "/nonexistent")
    assert done.returncode == 2
    assert done.stderr.startswith(b"nfq-guard: /nonexistent: ")


@pytest.mark.kernel
@pytest.mark.parametrize("command", ["run", "check"])
def test_an_early_sigterm_ends_process_1(command: str) -> None:
    """The kernel discards it without a handler, and `docker stop` would end in SIGKILL."""
    one = ("unshare", "--pid", "--fork", "--kill-child")
    done = loading(command, signal.SIGTERM, "--config=/nonexistent", prefix=one)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")


def test_an_interrupt_during_imports_is_silent() -> None:
    done = loading("check", signal.SIGINT)
    assert (done.returncode, done.stderr) == (130, b"")


def run_python(code: str, *words: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, check=False, env=ENVIRONMENT
    )
    return done.returncode, done.stdout, done.stderr


def test_an_interrupt_while_the_command_line_is_imported_is_silent() -> None:
    """`nfq_guard.entry` imports nothing else before."""
    code = (
        "import os, sys\n"
        "class Signal:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'nfq_guard.cli': os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Signal)\n"
        "from nfq_guard.entry import main\n"
        "main()"
    )
    assert run_python(code, "check") == (130, b"", b"")


def test_only_the_daemon_loads_the_library_of_its_log() -> None:
    """It takes as long as a third of all that a command loads otherwise."""
    code = (
        "import sys\n"
        "from nfq_guard.cli import COMMANDS, DAEMON, parser_of\n"
        "parser_of(COMMANDS.keys() - {DAEMON})\n"
        "print([name for name in ('structlog', 'asyncio', 'scapy') if name in sys.modules])"
    )
    assert run_python(code) == (0, b"[]\n", b"")


def test_garbage_is_collected_once_all_is_loaded() -> None:
    """And not searched for in what is loaded."""
    code = (
        "import gc, sys\n"
        "from nfq_guard.cli import check\n"
        "check.run = lambda _args: print(gc.isenabled(), gc.get_freeze_count() > 1000) or 0\n"
        "from nfq_guard.entry import main\n"
        "main()"
    )
    assert run_python(code, "check") == (0, b"True True\n", b"")


@pytest.mark.parametrize("words", [["check"], ["check", "--help"], ["check", "--unknown"]])
def test_a_command_ends_without_freeing_its_memory(words: list[str]) -> None:
    """Which Python does after what `atexit` names; all that was printed is written before."""
    code = (
        "import atexit, sys\n"
        "from nfq_guard.cli import check\n"
        "check.run = lambda _args: print('x' * 100_000) or 3\n"
        "atexit.register(print, 'freed', file=sys.stderr)\n"
        "from nfq_guard.entry import main\n"
        "main()"
    )
    status, printed, complaint = run_python(code, *words)
    assert b"freed" not in complaint
    if words == ["check"]:
        assert (status, len(printed)) == (3, 100_001)
    elif "--help" in words:
        assert status == 0
        assert printed.endswith(b"\n")
    else:
        assert status == 2
        assert b"unrecognized arguments: --unknown" in complaint


@pytest.mark.parametrize(
    "words",
    [
        ["report", "x", "-o", "-"],
        ["replay", "x", "--write", "-"],
        ["replay", "x", "--write", ""],
        ["replay", "x", "--report", "-"],
    ],
)
def test_an_output_has_a_name(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "expected the name of a file, found '" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rules", "show", "--after", "success"], "--after is for remove"),
        (["replay", "x", "--write", "y", "--report", "y"], "--report: y is the file of --write"),
        (["check", "--kernel", ""], "--kernel: expected a version"),
        (["replay", "x", "--flow", ""], "--flow: expected "),
        (["replay", "x", "--flows", "--flow", ""], "--flows lists whole flows"),
        (["replay", "x", "--policy", ""], "expected a readable file"),
        (["explain", "x", "1", "--policy", ""], "expected a readable file"),
    ],
)
def test_arguments_that_do_not_fit(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The help of a parser and of those below it."""
    yield parser.format_help()
    for sub in subparsers(parser).values():
        yield from helps(sub)


@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line for text in helps(parser_of(COMMANDS)) for line in text.splitlines()]
    assert [line for line in lines if len(line) > width] == []
    assert [line for line in lines if re.search(r"\w-$", line)] == [], "a name is whole"


def test_file_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation()
    talk.open()
    talk.client("PA", seq=90_000_000, ack=1, length=10)
    capture = talk.save(tmp_path / os.fsdecode(b"caf\xe9.pcap"))
    out = str(tmp_path / "page.html")
    events = tmp_path / os.fsdecode(b"\xff.jsonl")
    events.write_bytes(b"")
    for words in (
        ["replay", "--format", "json", capture, talk.save(tmp_path / "other")],
        ["explain", "--format", "json", capture, "4"],
        ["explain", capture, "4"],
        ["whatif", "--format", "json", capture, "--policy", "preset:default"],
        ["whatif", capture, "--policy", "preset:default"],
    ):
        assert main(words) == 0
        assert "caf\\" in capsys.readouterr().out
    assert main(["report", str(events), "-o", out]) == 0


@pytest.mark.parametrize("words", [["explain", "{}", "1"], ["replay", "{}"], ["whatif", "{}"]])
def test_a_recording_that_cannot_be_reached(words: list[str], tmp_path: Path) -> None:
    unreachable(words, tmp_path)


@pytest.mark.parametrize("option", ["--report", "--write"])
def test_an_output_that_cannot_be_reached(option: str, tmp_path: Path) -> None:
    talk = Conversation()
    talk.open()
    unreachable(["replay", talk.save(tmp_path / "capture"), option, "{}"], tmp_path)


def unreachable(words: list[str], tmp_path: Path) -> None:
    """Run a command with names that even stat(2) refuses; each is one line and exit status 2."""
    closed = tmp_path / "closed"
    closed.mkdir()
    drop: list[str] = []
    if os.geteuid() == 0:
        os.chown(closed, 65534, 65534)
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    closed.chmod(0o700 if drop else 0)
    for name, why in ((closed / "x", "Permission denied"), ("x" * 300, "File name too long")):
        done = subprocess.run(
            [*drop, *COMMAND, *(word.format(name) for word in words)],
            check=False,
            capture_output=True,
            env=ENVIRONMENT,
            cwd=tmp_path,
            text=True,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.endswith(f"{why}\n")
    closed.chmod(0o700)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["replay", "capture", "--policy", "input", "--write", "input"], "policy"),
        (["replay", "capture", "--policy", "input", "--report", "link"], "policy"),
        (["report", "events", "--policy", "input", "-o", "input"], "policy"),
        (
            ["report", "events", "--policy", "preset:strict", "--policy", "input", "-o", "./input"],
            "policy",
        ),
        (["report", "events", "--doctor", "input", "-o", "link"], "doctor"),
    ],
)
def test_no_output_replaces_the_file_of_another_option(
    words: list[str],
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Conversation().save(tmp_path / "capture")
    Path("events").write_bytes(b"")
    content = '[policy]\ndefault = "allow"\n'
    if option == "doctor":
        content = '{"id": "kernel", "status": "ok", "what": "x", "todo": ""}\n'
    Path("input").write_text(content, encoding="utf-8")
    Path("link").symlink_to("input")
    assert main(words) == 2
    assert f"is the file of --{option}\n" in capsys.readouterr().err
    assert Path("input").read_text(encoding="utf-8") == content


def test_an_output_may_have_the_name_of_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("events").write_bytes(b"")
    Path("preset:strict").write_bytes(b"")
    assert main(["report", "events", "--policy", "preset:strict", "-o", "preset:strict"]) == 0


def test_a_directory_is_no_capture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["explain", str(tmp_path), "1"]) == 2
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["rules", "--help"], ["-V"]])
def test_help_that_cannot_be_written_is_an_error(words: list[str], unbuffered: str) -> None:
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nfq_guard", *words],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
    assert done.returncode == 1
    assert "cannot write the output" in done.stderr


def test_color_after_an_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list", "--color", "never"]) == 0
    assert "kube-proxy-dnat" in capsys.readouterr().out


def test_only_the_lab_needs_scapy() -> None:
    """It is in an extra; everything else works where it is not installed."""
    code = (
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(name, *_):\n"
        "        if name.partition('.')[0] == 'scapy': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotInstalled)\n"
        "from nfq_guard.cli import COMMANDS, main, parser_of\n"
        "parser_of(COMMANDS).format_help()\n"
        "words = (['check', 'preset:default'], ['lab', 'list'], ['doctor'], ['lab', 'demo'])\n"
        "print(*(main(one) for one in words))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    *shown, statuses = done.stdout.splitlines()
    assert "kube-proxy-dnat" in "\n".join(shown)
    # What doctor finds is a matter of the host.
    assert re.fullmatch("0 0 [01] 69", statuses)
    assert done.stderr == (
        "nfq-guard: the lab needs scapy: pip install 'nfq-guard[lab]', or Debian's python3-scapy\n"
    )
