# SPDX-License-Identifier: MIT
import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfq_guard.errors import ConfigError
from nfq_guard.service import config
from nfq_guard.service.config import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nfq-guard.toml"


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path)
    return str(raised.value).removeprefix(f"{path}: ")


def test_both_tables(file: Path) -> None:
    file.write_text('[daemon]\nqueue = 3\n[policy]\ndefault = "log"\n')
    found = load(file)
    assert (found.settings.queue, found.policy_table) == (3, {"default": "log"})
    assert found.source == str(file)


def test_no_file_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none")
    assert load(None).source == "defaults"


def test_named_file_must_be_there(file: Path) -> None:
    assert problem(file).endswith("found No such file or directory")


def test_unknown_table(file: Path) -> None:
    file.write_text("[deamon]\n")
    assert problem(file).startswith("deamon: expected the tables [daemon] and [policy]")


def test_tables_that_are_none(file: Path) -> None:
    file.write_text("daemon = 1\npolicy = 2\n")
    assert problem(file).splitlines() == [
        "daemon: expected a table, found 1",
        f"{file}: policy: expected a table, found 2",
    ]


@pytest.mark.parametrize(
    "octets",
    [
        b"[daemon]\nqueue =\n",
        b"# \xff\n",
        b"#" * (1 << 21),
        b"x = " + b"[" * 100_000,
        b"x = " + b"9" * 100_000,
        b"a = 1\na = 2\n",
    ],
    ids=["broken", "not-utf-8", "too-large", "nested", "long-number", "twice"],
)
def test_broken_files_are_refused(file: Path, octets: bytes) -> None:
    file.write_bytes(octets)
    assert "expected" in problem(file)


def test_what_is_no_file_is_not_waited_for(file: Path, tmp_path: Path) -> None:
    assert "expected" in problem(tmp_path)
    os.mkfifo(file)
    assert "expected" in problem(file)
    file.unlink()
    file.symlink_to(file)
    assert "symbolic links" in problem(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(octets=st.binary(max_size=300))
def test_any_file_is_read_or_refused(octets: bytes, file: Path) -> None:
    file.write_bytes(octets)
    with contextlib.suppress(ConfigError):
        load(file)
