# SPDX-License-Identifier: MIT
"""The file of healed flows: entries are read back, and nothing else is."""

import os
import subprocess
from pathlib import Path

import pytest

from nfq_guard.flow import Direction, FlowTuple
from nfq_guard.service.worker.heal_record import HealedEntry, HealFile

_V4 = FlowTuple(6, b"\n\0\0\1", b"\n\0\0\2", 40_000, 443)
_V6 = FlowTuple(6, bytes(15) + b"\1", bytes(15) + b"\2", 1, 65_535)
_REPLY = frozenset({Direction.REPLY})
ENTRIES = [
    HealedEntry(0, _V4, b"\1\2\3\4", _REPLY),
    HealedEntry(7, _V6, b"", frozenset(Direction)),
]


def test_entries_are_read_back_once(tmp_path: Path) -> None:
    path = tmp_path / "healed"
    first = HealFile(path)
    for entry in ENTRIES:
        first.add(entry)
    second = HealFile(path)
    assert second.take() == ENTRIES
    assert second.take() == []
    second.replace(ENTRIES[1:])
    assert first.take() == ENTRIES[1:]
    first.close()
    second.close()
    assert not path.exists()


@pytest.mark.kernel
def test_a_full_file_system_takes_no_half_of_a_line(tmp_path: Path) -> None:
    """A heal that could not be undone after a crash is not carried out."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", str(tmp_path)], check=True)
    try:
        record = HealFile(tmp_path / "healed")
        added: list[HealedEntry] = []

        def fill() -> None:
            while True:
                flow = FlowTuple(6, _V4.src, _V4.dst, len(added), 443)
                entry = HealedEntry(0, flow, b"\1\2\3\4", _REPLY)
                record.add(entry)
                added.append(entry)

        with pytest.raises(OSError, match="No space left"):
            fill()
        second = HealFile(tmp_path / "healed")
        assert second.take() == added
        many = added * 2
        with pytest.raises(OSError, match="No space left"):
            second.replace(many)
        assert record.take() == many[: len(added)]
        record.close()
        second.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_no_file_without_a_heal(tmp_path: Path) -> None:
    path = tmp_path / "healed"
    record = HealFile(path)
    assert record.take() == []
    record.replace([])
    record.close()
    assert not path.exists()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"{}",
        b"[1, 2]",
        b'{"zone":0,"src":"CgAAAQ==","dst":"CgAA","sport":1,"dport":2,"identity":"","directions":[]}',
        b'{"zone":0,"src":"CgAA","dst":"CgAA","sport":1,"dport":2,"identity":"","directions":[]}',
        b'{"zone":-1,"src":"CgAAAQ==","dst":"CgAAAQ==","sport":1,"dport":2,"identity":"",'
        b'"directions":[]}',
        b'{"zone":0,"src":"CgAAAQ==","dst":"CgAAAQ==","sport":1,"dport":65536,"identity":"",'
        b'"directions":[]}',
        b'{"zone":0,"src":"CgAAAQ==","dst":"CgAAAQ==","sport":1,"dport":2,"identity":"",'
        b'"directions":[2]}',
    ],
)
def test_lines_that_are_not_ours_are_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "healed"
    record = HealFile(path)
    record.add(ENTRIES[0])
    with path.open("ab") as file:
        file.write(line + b"\n")
    record.add(ENTRIES[1])
    assert record.take() == ENTRIES


def test_only_an_empty_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "healed"
    record = HealFile(path)
    record.add(ENTRIES[0])
    record.close()
    assert path.exists()
    record = HealFile(path)
    record.take()
    record.close()
    assert not path.exists()


def test_a_planted_link_or_pipe_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(target)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    hard = tmp_path / "hard"
    hard.hardlink_to(target)
    for path in (link, hard, pipe, tmp_path):
        with pytest.raises(OSError, match=str(path)):
            HealFile(path).take()
        with pytest.raises(OSError, match=str(path)):
            HealFile(path).add(ENTRIES[0])
    assert target.read_text() == "mine"
