# SPDX-License-Identifier: MIT
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
    assert problem(file) == "expected a readable file, found No such file or directory"


def test_unknown_table(file: Path) -> None:
    file.write_text("[deamon]\n")
    assert problem(file).startswith("deamon: expected the tables [daemon] and [policy]")


def test_tables_that_are_none(file: Path) -> None:
    file.write_text("daemon = 1\npolicy = 2\n")
    assert problem(file).splitlines() == [
        "daemon: expected a table, found 1",
        f"{file}: policy: expected a table, found 2",
    ]


def test_broken_toml_has_line_and_column(file: Path) -> None:
    file.write_text("[daemon]\nqueue =\n")
    assert "line 2" in problem(file)


def test_not_utf8(file: Path) -> None:
    file.write_bytes(b"# \xff\n")
    assert problem(file) == "expected UTF-8, found octet 0xff at offset 2"


def test_too_large(file: Path) -> None:
    file.write_bytes(b"#" * (1 << 21))
    assert problem(file) == "expected at most 1048576 octets, found more"


def test_pipes_and_directories_are_not_waited_for(file: Path, tmp_path: Path) -> None:
    os.mkfifo(file)
    assert problem(file) == "expected a regular file, found something else"
    assert "directory" in problem(tmp_path).lower() or "something else" in problem(tmp_path)


def test_loop_of_links(file: Path) -> None:
    file.symlink_to(file)
    assert "symbolic links" in problem(file)


def test_deeply_nested(file: Path) -> None:
    file.write_text("x = " + "[" * 100_000)
    assert problem(file).startswith("expected TOML, found")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(octets=st.binary(max_size=300))
def test_any_file_is_read_or_refused(octets: bytes, file: Path) -> None:
    file.write_bytes(octets)
    try:
        load(file)
    except ConfigError as error:
        assert error.mistakes
