# SPDX-License-Identifier: MIT
"""A host with rules of others, and the doctor's word on it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfq_guard.cli import main
from nfq_guard.doctor.check import Status
from nfq_guard.firewall import BOTH_FAMILIES, Backend, Family
from nfq_guard.lab.netns import Namespace

RULES = Path(__file__).parent / "rules"


@dataclass
class Patient:
    """One namespace."""

    ns: Namespace
    capsys: pytest.CaptureFixture[str]

    def load(self, backend: Backend, name: str) -> None:
        """Load rules of others for both families, appended as their owners do."""
        text = (RULES / name).read_text(encoding="ascii")
        for family in BOTH_FAMILIES:
            self.restore(backend, family, text)

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
        """The checks on rules of others, by owner; the worst of each."""
        _, checks = self.examine()
        ranking = tuple(Status)
        found = [one for one in checks if one["id"].startswith("foreign.")]
        found.sort(key=lambda one: ranking.index(Status(one["status"])))
        return {one["id"].removeprefix("foreign."): one for one in found}


@pytest.fixture
def patient(namespace: Callable[[str], Namespace], capsys: pytest.CaptureFixture[str]) -> Patient:
    return Patient(namespace("doctor"), capsys)


@pytest.fixture(params=list(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)
