# SPDX-License-Identifier: MIT
"""The wheels, installed by pip and by pipx on a host without a compiler (`make releases`)."""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.systemd.conftest import WHEELS, Guest, boot

_COMPILERS: Final = "gcc cc clang c++"
# pipx installs the newest pip that it finds; the second folder has Debian's wheel of it.
_OFFLINE: Final = f"--no-index --find-links {WHEELS} --find-links /usr/share/python-wheels"

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    with boot(install=False) as guest:
        for name in _COMPILERS.split():
            guest.sh(f"! path=$(command -v {name}) || rm -f $(readlink -f $path) $path")
        yield guest


def works(guest: Guest, program: str) -> None:
    """Run the commands that a new user tries first."""
    assert guest.sh(f"{program} -V").startswith("nfq-guard ")
    findings = guest.sh(f"{program} doctor; test $? -le 1")
    assert re.search(r"\bbpf\b", findings), findings
    assert "Traceback" not in findings
    guest.sh(f"{program} check preset:default")


def test_pip(machine: Guest) -> None:
    machine.sh(f"python3 -m venv /opt/pip && /opt/pip/bin/pip install {_OFFLINE} nfq-guard")
    works(machine, "/opt/pip/bin/nfq-guard")
    machine.sh("ls /opt/pip/lib/python3.*/site-packages/nfq_guard/engine.*.so")
    machine.sh("test -s /opt/pip/share/man/man8/nfq-guard.8")


def test_pipx(machine: Guest) -> None:
    said = machine.sh(f"pipx install --pip-args='{_OFFLINE}' nfq-guard")
    assert "installed package nfq-guard" in said
    works(machine, "~/.local/bin/nfq-guard")
    machine.sh("pipx uninstall nfq-guard; ! ls ~/.local/bin/nfq-guard")
