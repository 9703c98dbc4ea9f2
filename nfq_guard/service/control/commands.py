# SPDX-License-Identifier: MIT
"""The commands of the control socket: arguments, permission and action of each."""

from collections.abc import Callable
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    NamedTuple,
    NotRequired,
    Protocol,
    TypedDict,
    TypeVar,
    final,
    get_type_hints,
)

import msgspec
from msgspec import Meta, Struct

from nfq_guard.engine import Mode
from nfq_guard.errors import UsageError
from nfq_guard.firewall import FailMode
from nfq_guard.policy.values import shown
from nfq_guard.service.control.protocol import Caller, Request, Responder, Response
from nfq_guard.service.settings import Settings, expected_value
from nfq_guard.service.status import Status, encode

# Maximum number of flows in the response to `dump`.
_FLOWS_MAX: Final = 256
# Maximum number of packets in the response to `packets`, each up to about a kilobyte.
_PACKETS_MAX: Final = 2048

A = TypeVar("A", bound=Struct)


class ControlledDaemon(Protocol):
    """The part of the daemon that commands use."""

    def status(self) -> Status:
        """The status of the daemon."""

    def dump(
        self, address: str | None, flows: int, respond: Responder, *, packets: bool = False
    ) -> None:
        """Respond with the most recent flows or packets, of one address or of all."""

    def reload(self, respond: Responder | None = None) -> None:
        """Reload the policy; respond when the new one is in force or refused."""

    def set_mode(self, mode: Mode, done: Callable[[str], None]) -> None:
        """Switch between dry-run and enforce.

        `done` is called once the rules follow the mode, or with the reason why they do not.
        """

    def hand_rules_over(self) -> Settings:
        """The settings that the rules should have, for root to install them.

        Raises:
            UsageError: The daemon changes its rules itself.
        """

    def rules_installed(self, fail_mode: FailMode | None) -> None:
        """Note that root has installed the rules that were handed over, or has not (None)."""


class Nothing(Struct, frozen=True):
    """The arguments of a command that takes none."""


class DumpArguments(Struct, frozen=True):
    """The arguments of `dump`.

    Attributes:
        address: Only flows with this address; None for all.
        flows: Maximum number of flows in the response.
    """

    address: str | None = None
    flows: Annotated[int, Meta(ge=1)] = _FLOWS_MAX


class PacketsArguments(Struct, frozen=True):
    """The arguments of `packets`.

    Attributes:
        address: Only packets with this address; None for all.
        packets: Maximum number of packets in the response.
    """

    address: str | None = None
    packets: Annotated[int, Meta(ge=1)] = _PACKETS_MAX


class ReloadArguments(Struct, frozen=True):
    """The arguments of `reload`.

    Attributes:
        wait: Whether to respond with the outcome instead of at once.
    """

    wait: bool = False


class ModeArguments(Struct, frozen=True):
    """The arguments of `mode`."""

    mode: Mode


class ModeRecord(TypedDict):
    """The response to `mode`.

    Attributes:
        mode: The mode in which packets are judged from now on.
        problem: Why the rules keep their fail mode; absent if they follow the mode.
    """

    mode: Annotated[str, Mode]
    problem: NotRequired[str]


class InstalledArguments(Struct, frozen=True):
    """The arguments of `rules_installed`.

    Attributes:
        fail_mode: The fail mode of the rules that the caller has installed.
    """

    fail_mode: FailMode


@final
class Command(NamedTuple, Generic[A]):
    """One command.

    Attributes:
        arguments: The type of its arguments.
        changes: Whether it changes the daemon; only root and the daemon's user may send it then.
        run: Carries out the command.
    """

    arguments: type[A]
    changes: bool
    run: Callable[[ControlledDaemon, A, Responder], None]


def _ping(_daemon: ControlledDaemon, _arguments: Nothing, respond: Responder) -> None:
    respond(Response.ok("pong"))


def _status(daemon: ControlledDaemon, _arguments: Nothing, respond: Responder) -> None:
    respond(Response.ok(encode(daemon.status())))


def _dump(daemon: ControlledDaemon, arguments: DumpArguments, respond: Responder) -> None:
    daemon.dump(arguments.address, min(arguments.flows, _FLOWS_MAX), respond)


def _packets(daemon: ControlledDaemon, arguments: PacketsArguments, respond: Responder) -> None:
    most = min(arguments.packets, _PACKETS_MAX)
    daemon.dump(arguments.address, most, respond, packets=True)


def _reload(daemon: ControlledDaemon, arguments: ReloadArguments, respond: Responder) -> None:
    if arguments.wait:
        daemon.reload(respond)
    else:
        daemon.reload()
        respond(Response.ok("reading the policy"))


def _mode(daemon: ControlledDaemon, arguments: ModeArguments, respond: Responder) -> None:
    def done(problem: str) -> None:
        record: ModeRecord = {"mode": arguments.mode.value}
        if problem:
            record["problem"] = problem
        respond(Response.ok(record))

    daemon.set_mode(arguments.mode, done)


def _rules_wanted(daemon: ControlledDaemon, _arguments: Nothing, respond: Responder) -> None:
    try:
        settings = daemon.hand_rules_over()
    except UsageError as error:
        respond(Response.error(str(error)))
    else:
        respond(Response.ok(msgspec.to_builtins(settings)))


def _rules_installed(
    daemon: ControlledDaemon, arguments: InstalledArguments, respond: Responder
) -> None:
    daemon.rules_installed(arguments.fail_mode)
    respond(Response.ok("noted"))


def _rules_not_installed(daemon: ControlledDaemon, _arguments: Nothing, respond: Responder) -> None:
    daemon.rules_installed(None)
    respond(Response.ok("noted"))


COMMANDS: Final[dict[str, Command[Any]]] = {
    "ping": Command(Nothing, changes=False, run=_ping),
    "status": Command(Nothing, changes=False, run=_status),
    "dump": Command(DumpArguments, changes=False, run=_dump),
    "packets": Command(PacketsArguments, changes=False, run=_packets),
    "reload": Command(ReloadArguments, changes=True, run=_reload),
    "mode": Command(ModeArguments, changes=True, run=_mode),
    "rules_wanted": Command(Nothing, changes=True, run=_rules_wanted),
    "rules_installed": Command(InstalledArguments, changes=True, run=_rules_installed),
    "rules_not_installed": Command(Nothing, changes=True, run=_rules_not_installed),
}
"""Root, and the user that the daemon runs as, may send every command; members of the socket's
group those that change nothing."""


@final
class Commands:
    """Carries out requests (`server.Handler`)."""

    def __init__(self, daemon: ControlledDaemon, group: int) -> None:
        """Carry out requests on `daemon`; `group` is the group of the socket."""
        self._daemon = daemon
        self._group = group

    def __call__(self, request: Request, caller: Caller, respond: Responder) -> None:
        """Carry out one request of `caller`."""
        name = request.command
        command = COMMANDS.get(name)
        if command is None:
            names = ", ".join(COMMANDS)
            respond(Response.error(f"expected one of {names}, found {shown(name)}"))
            return
        if not self._may_send(command, caller):
            needed = "root" if command.changes else "root or the group of the socket"
            respond(Response.error(f"{name} is for {needed}, not for the user {caller.uid}"))
            return
        arguments = _decode(name, command.arguments, request.arguments)
        if isinstance(arguments, str):
            respond(Response.error(arguments))
        else:
            command.run(self._daemon, arguments, respond)

    def _may_send(self, command: Command[Any], caller: Caller) -> bool:
        if caller.is_operator:
            return True
        return not command.changes and self._group in caller.groups


def _decode(name: str, kind: type[Struct], given: dict[str, Any]) -> Struct | str:
    """The arguments of a command, or the first mistake in them."""
    hints = get_type_hints(kind, include_extras=True)
    for argument, value in given.items():
        if argument not in hints:
            takes = " and ".join(hints) or "no arguments"
            return f"{name} takes {takes}, found {shown(argument)}"
        try:
            msgspec.convert(value, hints[argument])
        except msgspec.ValidationError:
            return f"{argument}: expected {expected_value(hints[argument])}, found {shown(value)}"
    for required in msgspec.structs.fields(kind):
        if required.required and required.name not in given:
            return f"{required.name}: expected {expected_value(required.type)}, found nothing"
    return msgspec.convert(given, kind)
