# SPDX-License-Identifier: MIT
"""The daemon's part of the configuration file: the table `[daemon]`.

The defaults here are the defaults of the daemon; a file only says what differs.
"""

import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from nfq_guard.engine import Mode
from nfq_guard.errors import Mistake
from nfq_guard.policy.values import shown, suggestion

TABLE: Final = "daemon"

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the daemon runs; what it decides is the policy's.

    Attributes:
        mode: Whether decisions are carried out, or only said.
        shadow: A file or preset whose policy is asked about every packet and never obeyed; events
            and metrics say where it differs. Empty for none.
        queue: Number of the queue.
        queues: Several queues instead, such as `0-3`; empty for the one of `queue`.
        cpu_fanout: With several queues, choose among them by CPU instead of by pair of addresses.
        zones: Conntrack zones in which flows are looked up, in order.
        fail_mode: What becomes of packets that nobody judges: they pass, are dropped, or are left
            to a plain rule in a later table that drops INVALID packets without our mark. In
            dry-run they pass, whatever stands here.
        queue_length: Packets that may wait in the kernel; also what a hung daemon may cost.
        copy_bytes: Octets of each packet that are looked at.
        socket_buffer_bytes: Of the queue's socket.
        batch: Packets judged in one turn at most.
        max_rate_pps: INVALID packets a second above which the kernel sheds them to the fail mode
            before they reach the queue; 0 for no limit.
        offload: Whether the kernel is told to drop the rest of a flow's INVALID packets by itself,
            for a while, when the policy drops whatever the flow can bring and it brings many.
        offload_after: Packets of one flow that must have been dropped within a second.
        offload_timeout_s: How long the kernel drops then; after that one packet is judged anew.
        offload_max_entries: Flows that the kernel may be told of at a time.
        log: A file, `-` for standard output, or `journal`.
        log_format: `auto` is `console` on a terminal and `json` elsewhere.
        log_interval_s: How long a flow keeps silent in the log after one event of it; 0: never.
        log_events_per_s: Events of packets in all.
        metrics_listen: Address and port for /metrics, such as `127.0.0.1:9477`; empty for none.
        metrics_file: File for node_exporter's textfile collector; empty for none.
        rules: Whether the daemon installs and removes its rules itself.
        backend: Which iptables.
        families: For which families of addresses.
        verify_rules_s: How often it looks whether its rules are still there; 0: never.
        reinstall_rules: Whether it puts them back then.
        control_socket: Path of the control socket; empty for none.
    """

    mode: Mode = Mode.DRY_RUN
    shadow: str = ""
    queue: Port = 0
    queues: str = ""
    cpu_fanout: bool = False
    zones: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=16)] = (0,)
    fail_mode: Literal["open", "closed", "kernel-drop"] = "open"
    queue_length: Annotated[int, Meta(ge=1, le=1 << 20)] = 4096
    copy_bytes: Annotated[int, Meta(ge=128, le=4016)] = 256
    socket_buffer_bytes: Annotated[int, Meta(ge=4096, le=1 << 28)] = 4 << 20
    batch: Annotated[int, Meta(ge=1, le=1024)] = 64
    max_rate_pps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    offload: bool = False
    offload_after: Annotated[int, Meta(ge=2, le=1_000_000)] = 50
    offload_timeout_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    offload_max_entries: Annotated[int, Meta(ge=1, le=65_536)] = 4096
    log: Annotated[str, Meta(min_length=1)] = "-"
    log_format: Literal["auto", "json", "console"] = "auto"
    log_interval_s: Seconds = 10.0
    log_events_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    metrics_listen: str = ""
    metrics_file: str = ""
    rules: Literal["install", "none"] = "install"
    backend: Literal["auto", "legacy", "nft"] = "auto"
    families: Literal["4", "6", "both"] = "both"
    verify_rules_s: Seconds = 30.0
    reinstall_rules: bool = True
    control_socket: str = "/run/nfq-guard/control.sock"

    @property
    def queue_numbers(self) -> range:
        """The queues, as a range of one or several."""
        if not self.queues:
            return range(self.queue, self.queue + 1)
        return parse_queues(self.queues) or range(0)


# Each is a process of some 30 MB: a slip such as `0-30000` would take the host down.
_WORKERS_MAX: Final = 32
# What `parse_queues` takes, for messages.
QUEUES: Final = f"0 <= A <= B <= 65535 and at most {_WORKERS_MAX} queues"


def parse_queues(text: str) -> range | None:
    """`A-B` or `A:B` as `QUEUES` has it, or one number; None if it is something else."""
    found = re.fullmatch(r"(\d{1,5})(?:[-:](\d{1,5}))?", text)
    if found is None:
        return None
    first = int(found[1])
    last = int(found[2]) if found[2] is not None else first
    good = first <= last <= 65535 and last - first < _WORKERS_MAX
    return range(first, last + 1) if good else None


def parse_listen(text: str) -> tuple[str, int] | None:
    """`HOST:PORT`, `[HOST]:PORT`; None if it is something else."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):(\d{1,5})", text)
    if found is None or int(found[3]) > 65535:
        return None
    return found[1] or found[2], int(found[3])


def parse_settings(table: Mapping[str, Any], mistakes: list[Mistake]) -> Settings:
    """Settings from the table `[daemon]`; what is wrong is added to `mistakes`, all of it.

    A value that is wrong counts as its default in the result, which nobody should use then.
    """
    hints = get_type_hints(Settings, include_extras=True)
    good: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{TABLE}.{key}"
        if key not in hints:
            hint = suggestion(key, tuple(hints))
            mistakes.append(Mistake(path, f"a setting of the daemon{hint}", f"unknown key {key!r}"))
            continue
        try:
            good[key] = msgspec.convert(value, hints[key])
        except msgspec.ValidationError:
            mistakes.append(Mistake(path, expected_value(hints[key]), shown(value)))
    settings = Settings(**good)
    _check_words(settings, mistakes)
    return settings


def _check_words(settings: Settings, mistakes: list[Mistake]) -> None:
    """What a type cannot say."""
    if settings.queues and parse_queues(settings.queues) is None:
        mistakes.append(
            Mistake(
                f"{TABLE}.queues",
                f"A-B with {QUEUES}, such as '0-3'",
                shown(settings.queues),
            )
        )
    if settings.metrics_listen and parse_listen(settings.metrics_listen) is None:
        mistakes.append(
            Mistake(
                f"{TABLE}.metrics_listen",
                "HOST:PORT, such as '127.0.0.1:9477'",
                shown(settings.metrics_listen),
            )
        )


def expected_value(hint: Any) -> str:  # noqa: ANN401 - a type, as `get_type_hints` gives it
    """What a setting or an argument takes, in words."""
    if get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Mode):
        return " or ".join(repr(mode.value) for mode in Mode)
    if get_origin(hint) is Annotated:
        kind, meta = get_args(hint)
        plain = expected_value(kind)
        if meta.ge is not None:
            return f"{plain} from {meta.ge}" + ("" if meta.le is None else f" to {meta.le}")
        return f"{plain}, not empty" if meta.min_length else plain
    if get_origin(hint) is tuple:
        return f"an array, each {expected_value(get_args(hint)[0])}"
    if get_origin(hint) is UnionType:
        return " or ".join(expected_value(kind) for kind in get_args(hint))
    return _KINDS[hint]


_KINDS: Final[dict[object, str]] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    type(None): "nothing",
    bool: "true or false",
}
