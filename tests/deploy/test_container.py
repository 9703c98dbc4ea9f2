# SPDX-License-Identifier: MIT
"""The Containerfile, read as `make container-test` reads it, agrees with the tree."""

import json
import shlex
from pathlib import Path
from typing import Final

from nfq_guard import __version__
from tests.support.containerfile import instructions
from tests.support.seccomp_profile import FOR_ROOT, PROFILE, allowed

TREE: Final = Path(__file__).parents[2]
_FOLDER: Final = TREE / "deploy" / "container"
_TEXT: Final = (_FOLDER / "Containerfile").read_text(encoding="utf-8")


def test_lines_are_joined() -> None:
    text = "# a comment\nRUN one \\\n    && two\n\nCOPY a b\n"
    assert [*instructions(text)] == [("RUN", "one      && two"), ("COPY", "a b")]


def test_what_is_copied_is_there() -> None:
    """The whole package is copied, and the files that its links lead to."""
    copied = set()
    for word, rest in instructions(_TEXT):
        if word == "COPY" and "--from=" not in rest:
            copied |= set(shlex.split(rest)[:-1])
    assert all((TREE / each).exists() for each in copied)
    for link in (TREE / "nfq_guard").rglob("*"):
        if link.is_symlink():
            assert link.resolve().relative_to(TREE).parts[0] in copied, link


def test_the_last_stage_has_no_compiler() -> None:
    last = _TEXT.split("FROM ")[-1]
    assert "gcc" not in last
    assert "python3-dev" not in last
    assert "AS " not in last.splitlines()[0]


def test_readme_names_the_version() -> None:
    text = (_FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"nfq-guard:{__version__}" in text
    assert f"nfq-guard:{__version__}" in _TEXT


def test_the_profile_allows_what_the_unit_does() -> None:
    """A later systemd may know more system calls than the one that wrote the profile."""
    profile = json.loads(PROFILE.read_text(encoding="ascii"))
    (rule,) = profile["syscalls"]
    assert (profile["defaultAction"], rule["action"]) == ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")
    assert set(rule["names"]) <= set(allowed())
    assert {"bpf", "recvmmsg", "sendmsg", *FOR_ROOT} <= set(rule["names"])
    assert not {"mount", "ptrace", "reboot", "setuid"} & set(rule["names"])
