# SPDX-License-Identifier: MIT
"""The output of a host's programs; a program that fails is reported."""

from pathlib import Path

import pytest

from nfq_guard.doctor import collect
from nfq_guard.errors import UnavailableError


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'netlink: Error: cache failed' >&2; exit 1", "netlink: Error: cache failed"),
        ("kill -SEGV $$", "ended with status -11"),
    ],
)
def test_an_nft_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    """As nft 1.0 does on a verdict map of ranges. The rules are unknown then, not absent."""
    nft = tmp_path / "nft"
    nft.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UnavailableError, match=f"^nft -j list ruleset: {said}"):
        collect.listed_by_nft("ruleset")


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ('[{},{"ifindex":2,"ifname":"red","flags":["MASTER"]},{}]', ["red"]),
        ("[{},{}]", []),
        ("", []),
    ],
)
def test_vrfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, names: list[str]
) -> None:
    """`ip` lists a link of another type as an empty object."""
    ip = tmp_path / "ip"
    ip.write_text(f"#!/bin/sh\necho '{listed}'\n", encoding="ascii")
    ip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert collect.vrf_names() == names


@pytest.mark.parametrize(
    ("octets", "number"), [("7\n", 7), ("", None), ("-1", None), ("\N{SUPERSCRIPT TWO}", None)]
)
def test_a_file_with_a_number(tmp_path: Path, octets: str, number: int | None) -> None:
    (tmp_path / "file").write_text(octets, encoding="utf-8")
    assert collect.number(tmp_path / "file") == number
