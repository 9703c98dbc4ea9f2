# SPDX-License-Identifier: MIT
import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfq_guard.engine import Mode
from nfq_guard.errors import ConfigError
from nfq_guard.policy.decision import Action
from nfq_guard.policyfile import read_file
from nfq_guard.service import config
from nfq_guard.service.config import load_config, load_policy_for, load_settings, read_config
from nfq_guard.service.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nfq-guard.toml"


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    return str(raised.value).removeprefix(f"{path}: ")


def test_both_tables(file: Path) -> None:
    file.write_text('[daemon]\nqueue = 3\n[policy]\ndefault = "log"\non_unknown = "log"\n')
    config = load_config(file)
    assert (config.settings.queue, config.model.default) == (3, Action.LOG)
    assert config.source == str(file)


def test_no_file_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none")
    assert load_config(None).source == "defaults"


def test_a_link_to_nothing_is_not_the_absence_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise `check` would accept the defaults, which the service does not start with."""
    (tmp_path / "link").symlink_to(tmp_path / "none")
    (tmp_path / "file").touch()
    for name in ("link", "file/below"):
        monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / name)
        with pytest.raises(ConfigError, match="expected a readable file"):
            load_config(None)


def test_named_file_must_be_there(file: Path) -> None:
    assert problem(file).endswith("found No such file or directory")


def test_a_path_that_no_event_can_name(tmp_path: Path) -> None:
    """Otherwise the daemon would end with a traceback at its event `started`."""
    file = tmp_path / os.fsdecode(b"\xff") / "c.toml"
    file.parent.mkdir()
    file.write_text("")
    assert "expected a path in valid UTF-8" in problem(file)


def test_a_mistake_with_a_path_that_is_no_text_is_text(tmp_path: Path, file: Path) -> None:
    """A reload with such a mistake ended the daemon."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / "policy.toml").write_text("[daemon]\n")
    (tmp_path / "link").symlink_to(folder)
    file.write_text('[policy]\ninclude = "link/policy.toml"\n')
    told = problem(file)
    assert "policy.include" in told
    told.encode()


def test_unknown_table(file: Path) -> None:
    file.write_text("[deamon]\n")
    assert problem(file).startswith("deamon: expected the tables [daemon] and [policy]")


def test_tables_of_another_type(file: Path) -> None:
    file.write_text("daemon = 1\npolicy = 2\n")
    assert problem(file).splitlines() == [
        "daemon: expected a table, found 1 (line 1)",
        f"{file}: policy: expected a table, found 2 (line 2)",
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


def test_a_path_that_is_not_a_file_does_not_block(file: Path, tmp_path: Path) -> None:
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
        load_config(file)


THREE_MISTAKES = """
[daemon]
queue = -1
shadow = "missing.toml"
[policy]
default = "dorp"
on_unknown = "log"
"""


def test_settings_policy_and_shadow_are_reported_together(file: Path) -> None:
    file.write_text(THREE_MISTAKES)
    reading = read_config(file)
    assert [mistake.key.split(" ")[0] for mistake in reading.mistakes] == [
        "daemon.queue",
        "policy.default",
        "daemon.shadow",
    ]
    assert reading.settings is None
    assert reading.config is None
    assert len(problem(file).splitlines()) == 3


def test_a_file_of_both_policies_is_read_once(file: Path, tmp_path: Path) -> None:
    """So that both have the same rules, also while it is replaced."""
    (tmp_path / "shared.toml").write_text('[policy]\ndefault = "log"\non_unknown = "log"\n')
    (tmp_path / "trial.toml").write_text('[policy]\ninclude = "shared.toml"\n')
    file.write_text('[daemon]\nshadow = "trial.toml"\n[policy]\ninclude = "shared.toml"\n')
    names: list[str] = []

    def read(name: str | Path) -> bytes:
        names.append(Path(name).name)
        return read_file(name)

    assert read_config(file, read).config is not None
    assert sorted(names) == ["nfq-guard.toml", "shared.toml", "trial.toml"]


def test_settings_are_usable_beside_a_broken_policy(file: Path) -> None:
    """`rules remove` and `doctor` work with the settings whatever the policy looks like."""
    file.write_text('[daemon]\nqueue = 3\n[policy]\ndefault = "dorp"\n')
    assert load_settings(file).queue == 3
    settings = read_config(file).settings
    assert settings is not None
    assert settings.queue == 3
    file.write_text("[daemon]\nqueue = -1\n")
    with pytest.raises(ConfigError, match=r"daemon\.queue"):
        load_settings(file)


def test_changed_settings_are_named_and_the_shadow_is_not(file: Path) -> None:
    """A reload adopts mode and policy on trial; any other setting takes a restart."""
    file.write_text('[daemon]\nqueue = 3\nmode = "enforce"\nshadow = "preset:default"\n')
    loaded = load_policy_for(Settings(), file)
    assert loaded.restart_for == ("queue",)
    assert loaded.mode is Mode.ENFORCE
    assert loaded.shadow is not None
    assert loaded.digest == loaded.facts.digest + loaded.shadow.digest


def test_a_mode_of_the_command_line_holds_whatever_the_file_says(file: Path) -> None:
    file.write_text('[daemon]\nmode = "enforce"\n')

    def override(settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, mode=Mode.DRY_RUN)

    assert load_policy_for(Settings(), file, override).mode is Mode.DRY_RUN


@pytest.mark.parametrize(
    ("policy", "heals"),
    [
        ('default = "log"\non_unknown = "log"\n', False),
        (
            'default = "log"\non_unknown = "log"\n[[policy.rule]]\nname = "far"\naction = "heal"\n',
            True,
        ),
    ],
)
def test_rules_for_the_metrics(file: Path, policy: str, *, heals: bool) -> None:
    file.write_text(f"[policy]\n{policy}", encoding="utf-8")
    loaded = load_policy_for(Settings(), file, lambda settings: settings)
    assert loaded.heals is heals
    assert loaded.rule_names == (*["far"] * heals, "default", "on-unknown", "hidden-half")
