# SPDX-License-Identifier: MIT
"""A daemon without queues, for tests of its endpoints."""

from collections.abc import Callable

from nfq_guard.engine import Mode
from nfq_guard.errors import UsageError
from nfq_guard.firewall import FailMode
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.settings import Settings
from nfq_guard.service.status import Status
from nfq_guard.telemetry.exposition import Observed
from nfq_guard.telemetry.metrics import Stats
from tests.support.observed import observed
from tests.support.status import daemon_status


class FakeDaemon:
    """Collects reload requests; the test responds to them."""

    def __init__(self, status_bytes: int = 10_000) -> None:
        self._status_bytes = status_bytes
        self.mode = Mode.DRY_RUN
        self.rules_problem = ""
        self.fail_mode = FailMode.OPEN
        self.reloads: list[Responder | None] = []
        self.stats = Stats()

    def status(self) -> Status:
        return daemon_status(mode=self.mode, config="x" * self._status_bytes)

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None:
        respond(Response.ok([address, flows, *(["packets"] if packets else [])]))

    def reload(self, respond: Responder | None = None) -> None:
        self.reloads.append(respond)

    def set_mode(self, mode: Mode, done: Callable[[str], None]) -> None:
        self.mode = mode
        done(self.rules_problem)

    def hand_rules_over(self) -> Settings:
        if not self.rules_problem:
            raise UsageError("the daemon changes its rules itself")
        return Settings(mode=self.mode, fail_mode="closed")

    def rules_installed(self, fail_mode: FailMode | None) -> None:
        if fail_mode is not None:
            self.rules_problem = ""
            self.fail_mode = fail_mode

    def observed(self, now: float) -> Observed:
        return observed(self.stats, at=now, counters={"reloads": 3})
