# SPDX-License-Identifier: MIT
"""The benchmark's readings of the machine while processes start and end."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import machine


def test_a_process_may_end_before_its_name_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count as a softirq thread, and those are still found."""
    expected = machine.softirq_threads()
    child = subprocess.Popen(["sleep", "60"])
    read = Path.read_text

    def after_its_end(path: Path, encoding: str) -> str:
        if path == Path(f"/proc/{child.pid}/comm"):
            child.kill()
            child.wait()
        return read(path, encoding)

    monkeypatch.setattr(Path, "read_text", after_its_end)
    assert machine.softirq_threads() == expected
    assert child.returncode is not None
