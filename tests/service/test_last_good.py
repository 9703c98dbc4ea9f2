# SPDX-License-Identifier: MIT
"""Starting with a faulty or empty configuration: the daemon uses the last good one, if any."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.errors import ConfigError, ConfigShortageError, Mistake, OutputError
from nfq_guard.service.config import load_policy_for
from nfq_guard.service.last_good import load, load_settings, save
from nfq_guard.service.settings import Settings

GOOD = """
[daemon]
queue = 5
shadow = "trial.toml"
[policy]
include = "more.toml"
"""
MORE = '[policy]\ninclude = "preset:default"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good configuration of three files."""
    (tmp_path / "trial.toml").write_text(MORE, encoding="utf-8")
    (tmp_path / "more.toml").write_text(MORE, encoding="utf-8")
    path = tmp_path / "file.toml"
    path.write_text(GOOD, encoding="utf-8")
    return path


@pytest.fixture
def copy(file: Path, tmp_path: Path) -> Path:
    """The path of its copy."""
    path = tmp_path / "copy.json"
    save(path, load_policy_for(Settings(), file))
    return path


def _no_table(path: Path) -> None:
    path.write_text("queue", encoding="utf-8")


def _in_policy(path: Path) -> None:
    path.write_text("[daemon]\nqueue = 6\n[policy]\nnonsense = 1\n", encoding="utf-8")


def _no_include(path: Path) -> None:
    path.with_name("more.toml").unlink()


def _bad_shadow(path: Path) -> None:
    path.with_name("trial.toml").write_text("[policy]\nnonsense = 1\n", encoding="utf-8")


def _emptied(path: Path) -> None:
    path.write_text("# nothing but a comment\n", encoding="utf-8")


@pytest.mark.parametrize(
    "spoil", [_no_table, _in_policy, _no_include, _bad_shadow, Path.unlink, _emptied]
)
def test_whichever_file_has_the_mistake(
    file: Path, copy: Path, spoil: Callable[[Path], None]
) -> None:
    before = load(file, copy)
    assert before.refused is None
    spoil(file)
    after = load(file, copy)
    assert after.config.model.rules == before.config.model.rules
    assert after.config.settings == before.config.settings == load_settings(file, copy)
    assert after.config.shadow is not None
    assert isinstance(after.refused, ConfigError)
    assert after.at.endswith("Z")


def test_a_good_file_is_not_replaced(file: Path, copy: Path) -> None:
    file.write_text("[daemon]\nqueue = 6\n", encoding="utf-8")
    assert load(file, copy).config.settings.queue == 6
    assert load_settings(file, copy).queue == 6


def test_an_empty_file_stands_for_the_defaults_without_a_copy_that_had_a_table(
    file: Path, copy: Path
) -> None:
    file.write_text("", encoding="utf-8")
    defaults = Settings()
    assert load(file, None).config.settings == defaults
    save(copy, load_policy_for(defaults, file))
    assert load(file, copy).refused is None
    copy.unlink()
    assert load(file, copy).config.settings == load_settings(file, copy) == defaults


def _not_there(copy: Path) -> None:
    copy.unlink()


def _cut(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:50])


def _no_file(copy: Path) -> None:
    copy.unlink()
    os.mkfifo(copy)


def _of_another(copy: Path) -> None:
    copy.write_text('{"at": "", "files": {"/other.toml": ""}}', encoding="utf-8")


@pytest.mark.parametrize("spoil", [_not_there, _cut, _no_file, _of_another])
def test_without_a_copy_the_mistakes_are_an_error(
    file: Path, copy: Path, spoil: Callable[[Path], None]
) -> None:
    """The settings of the file are used if only its policy has mistakes."""
    spoil(copy)
    _in_policy(file)
    for path in (copy, None):
        with pytest.raises(ConfigError, match="nonsense") as refused:
            load(file, path)
        assert load_settings(file, path).queue == 6
        # A copy that cannot be used is named.
        unusable = path is not None and spoil is not _not_there
        assert (f"(last good {copy}): expected " in str(refused.value)) is unusable


@pytest.mark.parametrize("spoil", [_cut, _no_file, _of_another])
def test_an_empty_file_is_an_error_beside_a_copy_that_cannot_be_used(
    file: Path, copy: Path, spoil: Callable[[Path], None]
) -> None:
    """The defaults would end enforcement, and take the place of the copy."""
    spoil(copy)
    _emptied(file)
    with pytest.raises(ConfigError, match=r"a table \[daemon\] or \[policy\]") as refused:
        load(file, copy)
    assert f"(last good {copy}): expected " in str(refused.value)


@pytest.mark.parametrize("spoil", [_in_policy, _emptied])
def test_a_shortage_at_the_copy_is_no_mistake(
    file: Path, copy: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a mistake the service would not be restarted."""

    def short(path: Path, most: int) -> bytes:
        raise ConfigShortageError(str(path), [Mistake("", "a readable file", f"{most} too many")])

    spoil(file)
    monkeypatch.setattr("nfq_guard.service.last_good.read_file", short)
    with pytest.raises(ConfigShortageError):
        load(file, copy)


def test_a_copy_that_cannot_be_written_leaves_the_last_one(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy.json"
    (folder / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"copy.json: cannot be written: .*irectory"):
        save(folder, load_policy_for(Settings(), file))
    assert {path.name for path in tmp_path.iterdir()} == {
        "copy.json",
        "file.toml",
        "more.toml",
        "trial.toml",
    }


def test_a_copy_too_large_to_be_read_again_leaves_the_last_one(file: Path, copy: Path) -> None:
    before = copy.read_bytes()
    lines = ["include = ["]
    for number in range(4):
        (file.parent / f"{number}.toml").write_text(MORE + "#" + "x" * 1_000_000, encoding="utf-8")
        lines.append(f'"{number}.toml",')
    (file.parent / "more.toml").write_text("[policy]\n" + "\n".join([*lines, "]"]), "utf-8")
    loaded = load_policy_for(Settings(), file)
    with pytest.raises(OutputError, match="more than 4 MiB in Base64"):
        save(copy, loaded)
    assert copy.read_bytes() == before


def test_no_planted_link_is_written_through(file: Path, copy: Path) -> None:
    """Neither at the file's name nor at one that an unfinished file once had."""
    victim = file.with_name("victim")
    victim.write_bytes(b"theirs")
    copy.unlink()
    for name in (copy.name, f".{copy.name}"):
        copy.with_name(name).symlink_to(victim)
    save(copy, load_policy_for(Settings(), file))
    assert victim.read_bytes() == b"theirs"
    assert not copy.is_symlink()
    assert load(file, copy).refused is None
