# SPDX-License-Identifier: MIT
"""The programs for developers that need root say so in one line."""

import os
import sys
from importlib import import_module

import pytest

from nfq_guard.errors import EXIT_NO_PRIVILEGE


@pytest.mark.parametrize(
    "name",
    [
        *("container", "faults", "fleet", "fuzz_kernel", "fuzz_rules", "kernels", "releases"),
        "fuzz_kernel.evidence",
    ],
)
def test_one_line_without_root(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"tests.{name}" if "." in name else f"tests.{name}.__main__"
    main = import_module(module).main
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_NO_PRIVILEGE
    assert capsys.readouterr().err == f"{name}: needs root\n"
