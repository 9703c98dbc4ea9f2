# SPDX-License-Identifier: MIT
"""What may be asked over the control socket, by whom, and what each request takes."""

import os
from typing import Final, Protocol, final

from nfq_guard.engine import Mode
from nfq_guard.service.control.protocol import Caller, Responder, Response
from nfq_guard.service.status import Status, encode

_READING: Final = ("ping", "status", "dump")
_CHANGING: Final = ("reload", "mode")
COMMANDS: Final = (*_READING, *_CHANGING)
# Flows that a dump shows at most.
_FLOWS_MAX: Final = 256


class Guard(Protocol):
    """The daemon, as far as requests go."""

    def status(self) -> Status:
        """How it stands."""

    def dump(self, address: str | None, flows: int, respond: Responder) -> None:
        """Respond with what was seen of the flows shown last."""

    def reload(self, respond: Responder | None = None) -> None:
        """Read the policy again; respond when it is in force, or refused."""

    def set_mode(self, mode: Mode) -> None:
        """Switch between dry-run and enforce."""


@final
class Requests:
    """Answers requests (`control.Handler`)."""

    def __init__(self, guard: Guard, group: int) -> None:
        """Answer for `guard`; members of `group` may ask what changes nothing."""
        self._guard = guard
        self._group = group

    def __call__(
        self, command: str, arguments: dict[str, object], caller: Caller, respond: Responder
    ) -> None:
        """One request."""
        if command not in COMMANDS:
            respond(
                Response.error(f"expected one of {', '.join(COMMANDS)}, found {command[:40]!r}")
            )
        elif not self._may(command, caller):
            needed = "root" if command in _CHANGING else "root or the group of the socket"
            respond(Response.error(f"{command} is for {needed}, not for the user {caller.uid}"))
        else:
            self._answer(command, arguments, respond)

    def _may(self, command: str, caller: Caller) -> bool:
        if caller.uid in {0, os.geteuid()}:
            return True
        return command in _READING and self._group in caller.groups

    def _answer(self, command: str, arguments: dict[str, object], respond: Responder) -> None:
        taken = _TAKEN[command]
        unknown = [name for name in arguments if name not in taken]
        if unknown:
            takes = f"{command} takes {' and '.join(taken) or 'no arguments'}"
            respond(Response.error(f"{takes}, found {unknown[0][:40]!r}"))
        elif command == "ping":
            respond(Response.ok("pong"))
        elif command == "status":
            respond(Response.ok(encode(self._guard.status())))
        elif command == "dump":
            self._dump(arguments, respond)
        elif command == "reload":
            self._reload(arguments, respond)
        else:
            self._mode(arguments, respond)

    def _dump(self, arguments: dict[str, object], respond: Responder) -> None:
        address = arguments.get("address")
        flows = arguments.get("flows", _FLOWS_MAX)
        if address is not None and not isinstance(address, str):
            respond(Response.error("address: expected an address in text"))
        elif isinstance(flows, bool) or not isinstance(flows, int) or flows < 1:
            respond(Response.error("flows: expected a number from 1"))
        else:
            self._guard.dump(address, min(flows, _FLOWS_MAX), respond)

    def _reload(self, arguments: dict[str, object], respond: Responder) -> None:
        wait = arguments.get("wait", False)
        if not isinstance(wait, bool):
            respond(Response.error("wait: expected true or false"))
        elif wait:
            self._guard.reload(respond)
        else:
            self._guard.reload()
            respond(Response.ok("reading the policy"))

    def _mode(self, arguments: dict[str, object], respond: Responder) -> None:
        try:
            mode = Mode(str(arguments.get("mode")))
        except ValueError:
            words = " or ".join(repr(mode.value) for mode in Mode)
            respond(
                Response.error(f"mode: expected {words}, found {str(arguments.get('mode'))[:40]!r}")
            )
            return
        self._guard.set_mode(mode)
        respond(Response.ok({"mode": mode.value}))


_TAKEN: Final = {
    "ping": (),
    "status": (),
    "dump": ("address", "flows"),
    "reload": ("wait",),
    "mode": ("mode",),
}
