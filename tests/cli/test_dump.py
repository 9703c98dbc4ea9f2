# SPDX-License-Identifier: MIT
import pytest

from nfq_guard.cli import main
from nfq_guard.cli.dump import _end


@pytest.mark.parametrize("text", ["nonsense", "10.0.0.1:", "10.0.0.1:x", "[::1", ""])
def test_no_address(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["dump", text, "--socket", "/nonexistent"]) == 2
    assert "expected ADDRESS or ADDRESS:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("10.0.0.1", ("10.0.0.1", None)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("2001:DB8:0::1", ("2001:db8::1", None)),
    ],
)
def test_ends(text: str, end: tuple[str, int | None]) -> None:
    assert _end(text) == end
