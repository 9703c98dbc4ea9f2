# SPDX-License-Identifier: MIT
"""README's commands work, and print the output that README shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from benchmarks import readme
from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.engine import Mode
from nfq_guard.flow import Evidence
from nfq_guard.lab.addresses import PLANS
from nfq_guard.lab.pace import limit
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.telemetry.events import all_fields
from nfq_guard.telemetry.packet_event import packet_judged
from tests.support import field_table
from tests.support.judgments import judgment
from tests.systemd.conftest import Guest

pytestmark = [pytest.mark.xdist_group("installed"), pytest.mark.timeout(limit(240))]

_TREE: Final = Path(__file__).parent.parent.parent
_README: Final = (_TREE / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)


def marked(name: str) -> str:
    """The block or table below `<!-- name -->`."""
    fenced = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)
    found = fenced or re.search(rf"<!-- {name} -->\n(.*?)\n\n", _README, re.DOTALL)
    assert found is not None
    return found[1]


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


def without_numbers(text: str) -> list[str]:
    return [" ".join(re.sub(r"\d+", "#", line).split()) for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events and a capture of one lab run, under the names that README uses."""
    made = tmp_path_factory.mktemp("recorded")
    words = ["lab", "run", "kube-proxy-dnat", "--mitigation", "guard", "--pcap", str(made)]
    subprocess.run(
        [sys.executable, "-m", "nfq_guard", *words, "--events", str(made)],
        check=True,
        capture_output=True,
    )
    (made / "kube-proxy-dnat-guard-inner.pcap").rename(made / "capture.pcap")
    (made / "kube-proxy-dnat-guard.jsonl").rename(made / "events.jsonl")
    return made


@pytest.mark.kernel
def test_every_command_runs(guest: Guest, recorded: Path) -> None:
    """On a host with the service installed, in the order of the file."""
    copied = {"capture.pcap": "/tmp", "events.jsonl": "/var/log/nfq-guard"}  # noqa: S108 - the guest's own
    for name, folder in copied.items():
        octets = (recorded / name).read_bytes().hex()
        guest.sh(
            f"cd {folder} && python3 -c 'import sys; sys.stdout.buffer.write("
            f"bytes.fromhex(sys.argv[1]))' {octets} >{name}"
        )
    here = {"make demo", "sudo make install"}
    for command in commands():
        if command in here:
            continue
        if command.startswith("journalctl"):
            assert command.endswith(" -f")
            said = guest.sh(f"cd /tmp && timeout 1 {command}", check=False)
        else:
            said = guest.sh(f"cd /tmp && {command}; test $? -lt 2")
        assert said.strip(), command
    assert here <= set(commands())


@pytest.mark.kernel
def test_the_demo_prints_what_readme_shows() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "demo", f"PYTHON={sys.executable}"],
        cwd=_TREE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = without_numbers(done.stdout)
    assert "connection reset by peer" in done.stdout
    assert "No RST anywhere" in done.stdout
    assert "bytes past it" in done.stdout
    assert len(done.stdout.splitlines()) < 40
    assert [line for line in without_numbers(marked("demo")) if line not in said] == []


def test_install_is_what_the_service_tests_install() -> None:
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "install"],
        cwd=_TREE,
        env={name: value for name, value in os.environ.items() if name != "PYTHON"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == "systemd/install.sh install"


def test_the_matrix_is_what_the_lab_expects() -> None:
    """The tests of the lab compare these expectations with real trials."""
    expected = {
        (name, mitigation.value, family): expectation.outcome.value
        for name, scenario in SCENARIOS.items()
        for mitigation, expectation in scenario.expected(KERNEL_6_1).items()
        for family in PLANS
    }
    assert marked("matrix") == field_table.render(expected)


def test_the_event_has_the_fields_that_events_have() -> None:
    made = judgment()
    event = packet_judged(made, mode=Mode.DRY_RUN, queue_num=0, evidence=Evidence.BPF, when="")
    assert list(json.loads(marked("event"))) == list(all_fields(event))


def test_the_policy_is_one(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    file = tmp_path / "nfq-guard.toml"
    file.write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "nfq_guard", "check", "--strict", str(file)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_performance_is_that_of_the_newest_results() -> None:
    """`python -m benchmarks.readme` writes the section."""
    folder = readme.newest()
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert readme.section(record, folder) in _README


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", _README)
    assert links
    for link in links:
        assert link.startswith("http") or (_TREE / link).exists(), link
