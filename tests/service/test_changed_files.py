# SPDX-License-Identifier: MIT
"""The conditions under which a file of the configuration counts as changed."""

from pathlib import Path

from nfq_guard.service.changed_files import ChangedFiles


def test_a_change_counts_once(tmp_path: Path) -> None:
    """Also a change between the start of the daemon and the first check."""
    file = tmp_path / "c.toml"
    file.write_bytes(b"new")
    files = ChangedFiles()
    assert files.look({str(file): b"old"})
    assert not files.look({str(file): b"old"}), "a refused file is not reloaded again and again"
    assert not files.look({str(file): b"new"}), "nor one that was taken"
    file.touch()
    assert not files.look({str(file): b"new"}), "the same content"


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    loaded = {str(file): b"one"}
    files = ChangedFiles()
    assert files.look(loaded)
    assert not files.look(loaded)
    file.write_bytes(b"one")
    assert files.look(loaded), "what was refused while it was gone is to be taken"
    assert not files.look(loaded)


def test_a_config_map_is_replaced_by_a_link(tmp_path: Path) -> None:
    """As the kubelet does it: each file is a link through `..data`, which is replaced at once."""
    for name, text in (("1", b"old"), ("2", b"new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.toml").write_bytes(text)
    data = tmp_path / "..data"
    data.symlink_to("1")
    file = tmp_path / "c.toml"
    file.symlink_to("..data/c.toml")
    files = ChangedFiles()
    assert not files.look({str(file): b"old"})
    fresh = tmp_path / "..data_tmp"
    fresh.symlink_to("2")
    fresh.replace(data)
    assert files.look({str(file): b"old"})
