# SPDX-License-Identifier: MIT
"""The guard as a container of the real Docker; run by name in the machine.

The commands are those of deploy/container/README.md, with the image that `make kernels` built from
the Containerfile. The guard runs in the host's network namespace, where Docker publishes a port of
another container.
"""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from nfq_guard.errors import EXIT_OK, EXIT_UNAVAILABLE
from nfq_guard.flow import Evidence
from nfq_guard.flows.open import open_lookup
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation, Outcome
from nfq_guard.lab.pace import limit
from tests.container.image import settings
from tests.kernels.owners import SITUATIONS, container, host, neighbour, outcome_of, published
from tests.support.queue import wait_for

__all__ = ["container", "host", "neighbour"]

pytestmark = pytest.mark.timeout(limit(300))

_TREE: Final = Path(__file__).parents[2]
_FOLDER: Final = _TREE / "deploy" / "container"
_IMAGE: Final = _TREE / "build" / "image.tar"
_CONFIG: Final = Path("/etc/nfq-guard/nfq-guard.toml")
_GUARD: Final = "nfq-guard"
_TO_A_NEIGHBOUR: Final = SITUATIONS[1]


def _run(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=_TREE)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout.strip()


def _status() -> dict[str, Any]:
    words = ("docker", "exec", _GUARD, "nfq-guard", "status", "--format", "json")
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return answer


def _evidence() -> Evidence:
    """What this kernel has for root, without a container."""
    flows, _ = open_lookup()
    flows.close()
    return flows.evidence


@pytest.fixture(scope="class")
def guard(container: Namespace) -> Iterator[None]:
    """The image as `docker build` would leave it, and the two containers of the README."""
    del container
    text = (_FOLDER / "README.md").read_text(encoding="utf-8")
    build, start = (part.split("```")[0] for part in text.split("```sh\n")[1:])
    image = shlex.split(build)[shlex.split(build).index("--tag") + 1]
    changes = [f"--change={name} {settings()[name]}" for name in ("ENTRYPOINT", "CMD")]
    _run("docker", "import", *changes, str(_IMAGE), image)
    *lines, last = start.replace("\\\n", " ").strip().splitlines()
    assert last == "docker exec nfq-guard nfq-guard status"
    for line in lines:
        done = subprocess.run(
            ["sh", "-ec", line], check=False, capture_output=True, text=True, cwd=_TREE
        )
        may_refuse = " prepare " in line and _evidence() is not Evidence.BPF
        expected = EXIT_UNAVAILABLE if may_refuse else EXIT_OK
        assert done.returncode == expected, (line, done.stdout, done.stderr)
    try:
        wait_for(lambda: bool(_status()))
        yield
    finally:
        logs = subprocess.run(
            ["docker", "logs", _GUARD], capture_output=True, text=True, check=True
        )
        print(logs.stdout, logs.stderr)  # noqa: T201 - with a failure
        _run("docker", "rm", "--force", _GUARD)


class TestContainer:
    def test_as_started_it_has_the_window_and_changes_nothing(
        self, guard: None, host: Namespace, neighbour: Namespace, container: Namespace
    ) -> None:
        """In the shipped dry-run the stray passes, as it does without a guard."""
        del guard
        found = _status()
        assert found["mode"] == "dry-run"
        # The settings of the kernel's log cannot be written there.
        window = _evidence() is Evidence.BPF
        assert found["evidence"] == (Evidence.BPF if window else Evidence.CTNETLINK)
        stage = published(host, neighbour, container)
        # The verdict, and so the RST, may come after the trial has looked at the connection.
        passed = {Outcome.RESET, Outcome.LEAKED}
        assert outcome_of(_TO_A_NEIGHBOUR, stage, Mitigation.NONE) in passed
        (queue,) = _status()["queues"]
        assert queue["packets"] > 0

    def test_it_saves_a_connection_to_a_published_port(
        self, guard: None, host: Namespace, neighbour: Namespace, container: Namespace
    ) -> None:
        """A changed mode is taken over by itself."""
        del guard
        text = _CONFIG.read_text(encoding="utf-8")
        _CONFIG.write_text(text.replace('mode = "dry-run"', 'mode = "enforce"'), encoding="utf-8")
        wait_for(lambda: _status().get("mode") == "enforce")
        stage = published(host, neighbour, container)
        assert outcome_of(_TO_A_NEIGHBOUR, stage, Mitigation.NONE) is Outcome.SURVIVED

    def test_stopped_it_leaves_no_rule(self, guard: None) -> None:
        del guard
        assert "nfq_guard" in _run("nft", "list", "tables")
        _run("docker", "stop", _GUARD)
        assert "nfq_guard" not in _run("nft", "list", "tables")
