# SPDX-License-Identifier: MIT
"""Man pages and completion equal those of the code, and real programs accept them."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from nfq_guard.cli import COMMANDS
from nfq_guard.lab.pace import limit
from tests.support.completion import FILES, completions
from tests.support.manpages import man_pages
from tests.support.reference import SHARE, settings_rows

PAGES = man_pages(settings_rows())
BASH, ZSH, FISH = (SHARE / file for file in FILES.values())


def program(name: str) -> str:
    """A program that the gate installs; elsewhere its tests are skipped."""
    found = shutil.which(name)
    if found is None:
        assert "CI" not in os.environ, f"{name} is missing"
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("name", PAGES)
def test_page_is_that_of_the_code(name: str) -> None:
    assert (SHARE / name).read_text(encoding="utf-8") == PAGES[name], "run `make reference`"


def test_completion_is_that_of_the_parser() -> None:
    pytest.importorskip("shtab", reason="only an environment of the gate has it")
    for name, text in completions().items():
        assert (SHARE / name).read_text(encoding="utf-8") == text, "run `make reference`"


def test_no_other_file() -> None:
    files = {str(path.relative_to(SHARE)) for path in SHARE.rglob("*") if path.is_file()}
    assert files == {*PAGES, *FILES.values()}


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_has_no_warning(name: str) -> None:
    done = subprocess.run(
        [program("mandoc"), "-T", "lint", "-W", "warning", SHARE / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def shown(name: str) -> str:
    """A page as text, without its bold letters."""
    done = subprocess.run(
        [program("mandoc"), "-T", "utf8", "-O", "width=80", SHARE / name],
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(".\x08", "", done.stdout)


def test_the_pages_have_their_entries() -> None:
    command = shown("man/man8/nfq-guard.8")
    for name in COMMANDS:
        assert re.search(rf"^ +nfq-guard {name}\b", command, re.MULTILINE), name
    assert re.search(r"^ +--policy FILE$", command, re.MULTILINE)
    settings = shown("man/man5/nfq-guard.toml.5")
    assert re.search(r"^ +queue_length$", settings, re.MULTILINE)
    assert "Default: 4096" in settings
    policy = shown("man/man5/nfq-guard-policy.5")
    assert re.search(r"^ +\[\[policy\.rule\]\]$", policy, re.MULTILINE)
    assert "Preset" not in policy
    assert "](" not in policy + settings + command
    assert "**" not in policy + settings + command


def completed(words: list[str], setup: str) -> None:
    """Type each of `TYPED` on the terminal of an interactive shell, and expect its words."""
    terminal, side = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": "/", "PS1": "$ "}
    with subprocess.Popen(
        words, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    ) as shell:
        os.close(side)
        told(terminal, f"{setup}; {ECHO}; echo rea''dy\n", "ready\r\n")
        for keys, expected in TYPED:
            told(terminal, f"nfq-guard {keys}\t\n", expected)
        os.write(terminal, b"exit\n")
        shell.wait(limit(20))
    os.close(terminal)


def told(terminal: int, keys: str, expected: str) -> None:
    """Type `keys` and wait until the terminal shows what is expected."""
    os.write(terminal, keys.encode())
    said = ""
    deadline = time.monotonic() + limit(20)
    while expected not in said:
        assert time.monotonic() < deadline, f"{keys!r} shows {said!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")


# The typed words, followed by a tab, and the words that are completed.
TYPED = [
    ("statu", "<status>"),
    ("mode --form", "<mode> <--format>"),
    ("mode en", "<mode> <enforce>"),
    ("lab run istio", "<lab> <run> <istio-redirect>"),
    ("replay --only no-en", "<replay> <--only> <no-entry>"),
    ("rules --fail-mode kern", "<rules> <--fail-mode> <kernel-drop>"),
]
ECHO = "nfq-guard() { printf '<%s> ' \"$@\"; echo; }"


def test_bash_completes() -> None:
    completed([program("bash"), "--norc", "--noprofile", "-i"], f". {BASH}")


def test_zsh_completes() -> None:
    loading = f"fpath=({ZSH.parent} $fpath); autoload -U compinit; compinit -D -u; unsetopt beep"
    completed([program("zsh"), "-f", "-i"], loading)


def test_fish_completes(tmp_path: Path) -> None:
    asking = "".join(f"; complete -C 'nfq-guard {keys}'" for keys, _ in TYPED)
    done = subprocess.run(
        [program("fish"), "-N", "-c", f"source {FISH}{asking}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    offered = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert offered == [words.rpartition("<")[2].removesuffix(">") for _, words in TYPED]
