# SPDX-License-Identifier: MIT
"""Runs a trial of the lab whose guard is an instance of the installed unit, and prints the result.

Run as root on a host with the service: `python -m tests.systemd.saved SCENARIO`. Prints the
outcome, the packets dropped and the evidence that packets were judged by.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from nfq_guard.lab.guard import Guard, Report
from nfq_guard.lab.netns import Namespace
from nfq_guard.lab.outcome import Mitigation
from nfq_guard.lab.scenarios import SCENARIOS
from nfq_guard.lab.trial import Keep, run

_CONFIG = """\
[daemon]
mode = "enforce"
control_socket = "/run/nfq-guard/{name}/control.sock"
"""


class Instance(Guard):
    """`nfq-guard@NAMESPACE.service` in mode enforce."""

    def __init__(
        self, router: Namespace, mitigation: Mitigation, directory: Path, policy: str = ""
    ) -> None:
        """Start the unit; it is ready when systemctl returns."""
        del mitigation, directory
        self._router = router
        self._status: dict[str, Any] = {}
        self._unit = f"nfq-guard@{router.name}.service"
        self._file = Path(f"/etc/nfq-guard/{router.name}.toml")
        self._file.write_text(_CONFIG.format(name=router.name) + policy, encoding="utf-8")
        subprocess.run(["systemctl", "start", self._unit], check=True)

    def wait_until_ready(self) -> None:
        """Do nothing: it was ready when it was made."""

    def close(self) -> None:
        """Stop the unit, after which `report` is available."""
        if not self._file.exists():
            return
        # The installed package, not the tree that the tests import.
        words = ("env", "-u", "PYTHONPATH", "nfq-guard", "status", "--format", "json")
        socket = f"/run/nfq-guard/{self._router.name}/control.sock"
        self._status = json.loads(self._router.run(*words, "--socket", socket).stdout)
        subprocess.run(["systemctl", "stop", self._unit], check=True)
        self._file.unlink()

    def report(self) -> Report:
        """The counters just before the unit was stopped."""
        queued = sum(queue["packets"] for queue in self._status["queues"])
        return Report(queued, self._status["actions"].get("drop", 0), ())

    @property
    def evidence(self) -> str:
        """The evidence that its packets were judged by."""
        return str(self._status["evidence"])


def main() -> None:
    """Print one JSON object."""
    started: list[Instance] = []

    def start(router: Namespace, mitigation: Mitigation, directory: Path, policy: str) -> Instance:
        started.append(Instance(router, mitigation, directory, policy))
        return started[-1]

    result = run(
        SCENARIOS[sys.argv[1]],
        Mitigation.GUARD,
        keep=Keep(),
        cancelled=threading.Event(),
        make_guard=start,
    )
    found = {"outcome": result.outcome, "dropped": result.dropped}
    sys.stdout.write(f"{json.dumps(found | {'evidence': started[0].evidence})}\n")


if __name__ == "__main__":
    main()
