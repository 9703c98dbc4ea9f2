# SPDX-License-Identifier: MIT
"""Taking over a new policy while packets go on: read in a thread, swapped whole, or not at all.

A reload that is asked for while another is under way begins after it, because the file may have
changed since that one read it; all who ask meanwhile share the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from nfq_guard.errors import NfqGuardError
from nfq_guard.service.config import LoadedPolicy
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.supervisor.workers import Workers
from nfq_guard.telemetry.events import (
    ReloadCrashed,
    Reloaded,
    ReloadFailed,
    exception_texts,
    own_fields,
    timestamp,
)
from nfq_guard.telemetry.log import EventLog


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """How one ended.

    Attributes:
        at: When, as in events.
        mistakes: Why the old policy stayed; none when the new one is in force.
    """

    at: str
    mistakes: tuple[str, ...]


@final
class Reloader:
    """Reloads, one at a time.

    Attributes:
        loaded: The policy in force.
        last: How the last reload ended; None before the first.
        taken: Reloads that took a new policy.
        refused: Reloads that kept the old one.
    """

    def __init__(
        self,
        *,
        loaded: LoadedPolicy,
        read: Callable[[], LoadedPolicy],
        workers: Workers,
        loop: Loop,
        events: EventLog,
        notifier: Notifier,
    ) -> None:
        """Begin with a policy.

        Args:
            loaded: It.
            read: Reads it anew, in a thread, or raises NfqGuardError.
            workers: Who judges by it.
            loop: Where the swap happens.
            events: Where it is told.
            notifier: And systemd.
        """
        self.loaded = loaded
        self.last: Reload | None = None
        self.taken = 0
        self.refused = 0
        self._read = read
        self._workers = workers
        self._loop = loop
        self._events = events
        self._notifier = notifier
        self._now: list[Responder] | None = None
        self._next: list[Responder] | None = None

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._now is not None

    def ask(self, respond: Responder | None = None) -> None:
        """Have the policy read again; `respond` when that is done."""
        replies = [] if respond is None else [respond]
        if self._now is not None:
            self._next = [*(self._next or ()), *replies]
            return
        self._now = replies
        self._notifier.reloading()
        self._loop.background(self._read, self._swap, self._failed)

    def _swap(self, loaded: LoadedPolicy) -> None:
        def done(problem: str) -> None:
            if problem:
                self._refuse(problem)
                return
            self.loaded = loaded
            self.taken += 1
            self.last = Reload(at=timestamp(), mistakes=())
            event = Reloaded(
                policy=loaded.facts.digest,
                rules=loaded.facts.rules,
                shadow=None if loaded.shadow is None else loaded.shadow.digest,
                restart_for=list(loaded.restart_for) or None,
            )
            self._events.emit(event)
            self._finish(Response.ok(own_fields(event)))

        self._workers.adopt(loaded, done)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, NfqGuardError):
            self._refuse(str(error))
            return
        # A bug of ours that a file can reach must not end a daemon that has a good policy.
        _, trace = exception_texts(error)
        self._events.emit(ReloadCrashed(traceback=trace))
        self._refuse(f"{type(error).__name__}: {error}")

    def _refuse(self, problem: str) -> None:
        mistakes = problem.splitlines()
        self.refused += 1
        self.last = Reload(at=timestamp(), mistakes=tuple(mistakes))
        self._events.emit(ReloadFailed(mistakes=mistakes))
        self._finish(Response.error(problem))

    def _finish(self, answer: Response) -> None:
        replies = self._now or []
        self._now = None
        self._notifier.reloaded()
        for respond in replies:
            respond(answer)
        if self._next is not None:
            waiting, self._next = self._next, None
            self.ask()
            self._now = waiting
