# SPDX-License-Identifier: MIT
"""Reloads the policy while packets are judged.

The policy is read in a thread, then adopted by all workers or by none. A reload that is requested
during another one starts after it, because the file may have changed since it was read. All
requests that arrive during a reload share the next one.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import final

from nfq_guard.engine import Mode
from nfq_guard.errors import NfqGuardError
from nfq_guard.service.config import LoadedPolicy, cut_to_nothing
from nfq_guard.service.control.protocol import Responder, Response
from nfq_guard.service.loop import Loop
from nfq_guard.service.notify import Notifier
from nfq_guard.service.status import ReloadStatus
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
class Reloader:
    """Reloads the policy, one reload at a time.

    Attributes:
        loaded: The policy in force.
        last: The outcome of the last reload; None before the first.
        taken: Reloads that adopted a new policy.
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
        keep: Callable[[LoadedPolicy], None],
        set_mode: Callable[[Mode, Callable[[str], None]], None],
    ) -> None:
        """Read nothing before `request`.

        Args:
            loaded: The policy in force at the start.
            read: Reads the policy, in a thread; raises NfqGuardError if it has mistakes.
            workers: Adopt the policy.
            loop: The loop in which a policy is adopted.
            events: Logs outcomes.
            notifier: Notifies the service manager of each reload.
            keep: Called with each policy that is adopted.
            set_mode: Called when a reload finds another mode in the file, with that mode and a
                function that it calls once the rules follow the mode or cannot. Otherwise a mode
                that was set by the control socket stays.
        """
        self.loaded = loaded
        self.last: ReloadStatus | None = None
        self.taken = 0
        self.refused = 0
        self._read = read
        self._workers = workers
        self._loop = loop
        self._events = events
        self._notifier = notifier
        self._keep = keep
        self._set_mode = set_mode
        self._current: list[Responder] | None = None
        self._next: list[Responder] | None = None

    @property
    def busy(self) -> bool:
        """Whether a reload is under way."""
        return self._current is not None

    def request(self, respond: Responder | None = None) -> None:
        """Reload the policy, now or after the reload under way; respond when that has ended."""
        responders = [] if respond is None else [respond]
        if self._current is None:
            self._begin(responders)
        else:
            self._next = [*(self._next or ()), *responders]

    def _begin(self, responders: list[Responder]) -> None:
        self._current = responders
        self._notifier.reloading()
        self._loop.background(self._read, self._adopt, self._failed)

    def _adopt(self, loaded: LoadedPolicy) -> None:
        if loaded.empty and not self.loaded.empty:
            self._refuse(str(cut_to_nothing(loaded.empty, "the configuration in force")))
            return

        def done(problem: str) -> None:
            if problem:
                self._refuse(problem)
                return
            changed = loaded.mode is not self.loaded.mode
            self.loaded = loaded
            self.taken += 1
            self.last = ReloadStatus(at=timestamp(), mistakes=())

            def taken(problem: str) -> None:
                event = Reloaded(
                    policy=loaded.facts.digest,
                    rules=loaded.facts.rules,
                    shadow=None if loaded.shadow is None else loaded.shadow.digest,
                    mode=loaded.mode if changed else None,
                    restart_for=list(loaded.restart_for) or None,
                    rules_problem=problem or None,
                )
                try:
                    self._keep(loaded)
                    self._events.emit(event)
                finally:
                    self._end(Response.ok(own_fields(event)))

            if changed:
                self._set_mode(loaded.mode, taken)
            else:
                taken("")

        self._workers.adopt(loaded, done)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, NfqGuardError):
            self._refuse(str(error))
            return
        # A bug that a policy file triggers must not end a daemon with a valid policy.
        problem, trace = exception_texts(error)
        self._events.emit(ReloadCrashed(traceback=trace))
        self._refuse(problem)

    def _refuse(self, problem: str) -> None:
        mistakes = problem.splitlines()
        self.refused += 1
        self.last = ReloadStatus(at=timestamp(), mistakes=tuple(mistakes))
        try:
            self._events.emit(ReloadFailed(mistakes=mistakes))
        finally:
            self._end(Response.error(problem))

    def _end(self, response: Response) -> None:
        """Respond, and start the next reload; a responder that raises prevents neither."""
        responders = self._current or []
        self._current = None
        with ExitStack() as steps:
            steps.callback(self._begin_next)
            for respond in reversed(responders):
                steps.callback(respond, response)
            steps.callback(self._notifier.reloaded)

    def _begin_next(self) -> None:
        if self._next is not None and self._current is None:
            waiting, self._next = self._next, None
            self._begin(waiting)
