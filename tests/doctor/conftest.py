# SPDX-License-Identifier: MIT
"""A namespace with other programs' rules, and the doctor's findings there."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.doctor.check import Status
from nfq_guard.firewall import Backend, Family
from nfq_guard.lab.netns import Namespace

RULES = Path(__file__).parent / "rules"


@dataclass
class Host:
    """A namespace that the doctor examines."""

    ns: Namespace
    capsys: pytest.CaptureFixture[str]

    def load(self, backend: Backend, name: str) -> None:
        """Append other programs' rules for both families."""
        text = (RULES / name).read_text(encoding="ascii")
        self.restore(backend, Family.IPV4, text)
        for old, new in (("icmp-host-prohibited", "icmp6-adm-prohibited"), ("h icmp-", "h icmp6-")):
            text = text.replace(old, new)
        self.restore(backend, Family.IPV6, text)

    def restore(self, backend: Backend, family: Family, text: str) -> None:
        base = "iptables" if family is Family.IPV4 else "ip6tables"
        self.ns.run(f"{base}-{backend}-restore", "--noflush", "-w", stdin=text)

    def command(self, *words: str) -> int:
        with self.ns.entered():
            return main(list(words))

    def examine(self) -> tuple[int, list[dict[str, str]]]:
        """The exit status, and the checks."""
        self.capsys.readouterr()
        status = self.command("doctor", "--format", "json")
        return status, [json.loads(line) for line in self.capsys.readouterr().out.splitlines()]

    def foreign(self) -> dict[str, dict[str, str]]:
        """The most severe check on other programs' rules, by owner."""
        _, checks = self.examine()
        ranking = tuple(Status)
        foreign = [check for check in checks if check["id"].startswith("foreign.")]
        foreign.sort(key=lambda check: ranking.index(Status(check["status"])))
        return {check["id"].removeprefix("foreign."): check for check in foreign}


@pytest.fixture
def host(namespace: Callable[[str], Namespace], capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(namespace("doctor"), capsys)


@pytest.fixture(params=list(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)
