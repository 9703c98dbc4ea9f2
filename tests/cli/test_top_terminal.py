# SPDX-License-Identifier: MIT
"""Terminals on which `top` cannot work."""

import os
import pty
import subprocess
import sys

import pytest


def top(term: str | None) -> tuple[int, str]:
    """Exit status and output of `top` on a terminal of that kind."""
    main, side = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "TERM"}
    with subprocess.Popen(
        [sys.executable, "-m", "nfq_guard", "top"],
        stdin=side,
        stdout=side,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | ({} if term is None else {"TERM": term}),
    ) as process:
        os.close(side)
        _, said = process.communicate(timeout=60)
    os.close(main)
    return process.returncode, said


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_terminal_that_cannot_move_its_cursor_is_refused(term: str | None) -> None:
    status, said = top(term)
    assert status == 2
    assert said == ("nfq-guard: top needs a terminal that can move its cursor; use --format json\n")
