# SPDX-License-Identifier: MIT
"""The settings of the daemon: the table `[daemon]` of the configuration file.

A setting that is absent from the file has the default given here.
"""

import re
from collections.abc import Mapping
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from nfq_guard.engine import Mode
from nfq_guard.errors import Mistake
from nfq_guard.firewall.spec import LAST_QUEUE, MAX_RATE_PPS
from nfq_guard.flow import EvidenceChoice
from nfq_guard.policy.values import SUGGESTIONS_MAX, shown, suggestion

TABLE: Final = "daemon"
# The settings that a reload applies: the policy on trial is adopted together with the acting one.
RELOADED: Final = frozenset({"mode", "shadow"})

Port = Annotated[int, Meta(ge=0, le=65535)]
# Outputs of the log other than files.
STDOUT: Final = "-"
JOURNAL: Final = "journal"

Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the daemon runs; the policy determines its decisions.

    Attributes:
        mode: `enforce` carries decisions out; `dry-run` accepts every packet and only logs what
            `enforce` would do.
        shadow: A file or preset with a policy on trial: it decides about every packet, and events
            and metrics show where its decision differs, but its decisions are never carried out.
            Empty for none.
        queue: Number of the queue.
        queues: Several queues instead, such as `0-3`; empty for the one of `queue`.
        cpu_fanout: With several queues, choose among them by CPU instead of by pair of addresses.
            Packets of one flow may then be in several queues, each of which counts rates and heals
            and links RSTs to packets by itself.
        evidence: The source of a flow's state: `bpf` reads the kernel's own window; `kernel-log`
            takes the reason from the kernel's log of the packet and the rest from `ctnetlink`;
            `ctnetlink` alone cannot tell which bound of the window a segment broke. `auto` takes
            the first of these that the host offers.
        zones: Conntrack zones in which flows are looked up, in order. A queued packet does not show
            its zone: where several have a flow of its addresses and ports, the first one counts,
            which may be that of another network.
        fail_mode: The treatment of packets that are not judged: `open` accepts them, `closed` drops
            them, and `kernel-drop` leaves them to a rule in a later table that drops INVALID
            packets with our mark. In dry-run they are accepted whatever the fail mode.
        queue_length: Maximum number of packets that wait in the kernel, and thus that a hung daemon
            delays.
        copy_bytes: Bytes of each packet that the kernel passes to the daemon.
        socket_buffer_bytes: Size of the receive buffer of the queue's socket.
        batch: Maximum number of packets that are judged in one batch.
        max_rate_pps: Rate of INVALID packets above which the kernel leaves packets to the fail
            mode before they reach the queue; 0 for no limit. With iptables IPv4 and IPv6 have this
            rate each.
        offload: Whether the kernel itself temporarily drops further INVALID packets of a flow that
            has many of them, if the policy would drop every one.
        offload_after: Packets of one flow that must be dropped within a second before its further
            packets are offloaded.
        offload_timeout_s: Time for which the kernel drops them; then one packet is judged again.
        offload_max_entries: Maximum number of flows that are offloaded at a time.
        heal_flow_per_minute: Maximum number of heals of one flow a minute, by rules with the action
            `heal`.
        heal_per_minute: Maximum number of heals a minute, of all flows of a queue.
        heal_max_flows: Maximum number of flows of a queue that are healed at a time.
        heal_timeout_s: Time without an INVALID packet that the policy heals, after which a heal
            is undone.
        heal_both_directions: Whether a heal ends the window check of both senders of a flow, not
            only of the one whose packet was INVALID.
        log: A file, `-` for standard output, or `journal`; or an array of several outputs. An
            output that blocks or fails delays neither packets nor the other outputs.
        log_format: Format of the log, except in the journal, whose entries have native fields;
            `auto` is `console` on a terminal and `json` elsewhere; `eve` is Suricata's EVE JSON,
            also in `events_file`.
        log_allowed: Whether packets that the policy allows have events too; `whatif` needs these.
        log_interval_s: Minimum time between two events of packets of one flow that policies do not
            tell apart; 0 for no limit.
        log_events_per_s: Maximum number of events of packets a second, of all flows of a queue
            together.
        events_file: File for the events of packets, JSON lines, instead of the log; empty for none.
            A rotation needs no signal.
        events_file_max_bytes: Maximum size of the events file; at this size nothing is written
            until it is rotated, and packets without an event are counted. With several queues it
            may be exceeded by what they write within a second.
        pods_dir: Directory with the results of the container runtime's CNI library, such as
            `/var/lib/cni/results`, from which events name the pods of a Kubernetes node; empty for
            none. Its files belong to root: a daemon of another user needs CAP_DAC_READ_SEARCH.
        capture_packets: INVALID packets of each queue that are kept in memory, for `nfq-guard dump
            --pcap` and `capture_dir`; 0 for none. At most 500 a second are kept.
        capture_payload: Whether kept packets include their payload, up to `copy_bytes`.
        capture_dir: Directory for files of kept packets, pcapng; empty for none.
        capture_alert_packets: Packets of one reason within a second at which a file is written, at
            most one a minute. A file is also written when the kernel drops packets and when judging
            fails. 0 to write all kept packets.
        capture_files: Number of files that are kept for each queue.
        capture_hash_addresses: Whether addresses in files are replaced by keyed hashes, with a new
            key at each start.
        metrics_listen: Address and port of an endpoint with /metrics and /healthz, such as
            `127.0.0.1:9477`, for a daemon without `nfq-guard-metrics.socket`; empty for none.
        metrics_file: File for the textfile collector of node_exporter, which all users may read;
            empty for none.
        rules: Whether the daemon installs and removes its rules in the packet filter (`install`);
            or another program does, and the daemon restores rules that were changed meanwhile
            (`keep`) or not (`none`). In the service root installs and removes them, unless it is
            `none`.
        backend: The packet filter of the rules: iptables of the variant `legacy` or `nft`, or a
            native table of `nftables`; `auto` chooses by the existing rules.
        families: Address families for which the rules are installed.
        verify_rules_s: Interval at which the rules are verified; 0 for never. They are also
            verified within seconds after a change of the nftables ruleset.
        reinstall_rules: Whether rules that were changed or removed are installed again.
        control_socket: Path of the control socket; empty for none.
        user: The user that a daemon started by root becomes, with its groups, after the steps that
            require root; empty to stay root. If this user cannot access a file that the daemon
            needs, the daemon keeps CAP_DAC_OVERRIDE, and the log names the first such file.
        follow_files_s: Interval at which the configuration and the files that it includes are
            checked, for a ConfigMap. They are reloaded if their content has changed and stays the
            same for a second, or for the interval, if that is shorter; 0 for never.
    """

    mode: Mode = Mode.DRY_RUN
    shadow: str = ""
    queue: Port = 0
    queues: str = ""
    cpu_fanout: bool = False
    evidence: EvidenceChoice = "auto"
    zones: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=16)] = (0,)
    fail_mode: Literal["open", "closed", "kernel-drop"] = "open"
    queue_length: Annotated[int, Meta(ge=1, le=1 << 20)] = 4096
    copy_bytes: Annotated[int, Meta(ge=128, le=4016)] = 256
    socket_buffer_bytes: Annotated[int, Meta(ge=4096, le=1 << 28)] = 4 << 20
    batch: Annotated[int, Meta(ge=1, le=1024)] = 64
    max_rate_pps: Annotated[int, Meta(ge=0, le=MAX_RATE_PPS)] = 0
    offload: bool = False
    offload_after: Annotated[int, Meta(ge=2, le=1_000_000)] = 50
    offload_timeout_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    offload_max_entries: Annotated[int, Meta(ge=1, le=65_536)] = 4096
    heal_flow_per_minute: Annotated[int, Meta(ge=1, le=1000)] = 3
    heal_per_minute: Annotated[int, Meta(ge=1, le=100_000)] = 6000
    heal_max_flows: Annotated[int, Meta(ge=1, le=65_536)] = 8192
    heal_timeout_s: Annotated[float, Meta(ge=1, le=86_400)] = 600.0
    heal_both_directions: bool = False
    log: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    ) = STDOUT
    log_format: Literal["auto", "json", "console", "eve"] = "auto"
    log_allowed: bool = False
    log_interval_s: Seconds = 10.0
    log_events_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    events_file: str = ""
    events_file_max_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 40)] = 256 << 20
    pods_dir: str = ""
    capture_packets: Annotated[int, Meta(ge=0, le=65_536)] = 2048
    capture_payload: bool = False
    capture_dir: str = ""
    capture_alert_packets: Annotated[int, Meta(ge=0, le=1_000_000)] = 20
    capture_files: Annotated[int, Meta(ge=1, le=10_000)] = 20
    capture_hash_addresses: bool = False
    metrics_listen: str = ""
    metrics_file: str = ""
    rules: Literal["install", "keep", "none"] = "install"
    backend: Literal["auto", "legacy", "nft", "nftables"] = "auto"
    families: Literal["4", "6", "both"] = "both"
    verify_rules_s: Seconds = 30.0
    reinstall_rules: bool = True
    control_socket: str = "/run/nfq-guard/control.sock"
    user: str = ""
    follow_files_s: Seconds = 0.0

    @property
    def logs(self) -> tuple[str, ...]:
        """The outputs of the log, each once."""
        names = (self.log,) if isinstance(self.log, str) else self.log
        return tuple(dict.fromkeys(names))

    @property
    def queue_numbers(self) -> range:
        """The numbers of the queues, one or several."""
        if not self.queues:
            return range(self.queue, self.queue + 1)
        return parse_queues(self.queues) or range(0)


# Each queue has a process of about 30 MB; a mistyped `0-30000` would exhaust the host's memory.
_WORKERS_MAX: Final = 32
# The input that `parse_queues` accepts, for messages.
QUEUES: Final = f"0 <= A <= B <= {LAST_QUEUE} and at most {_WORKERS_MAX} queues"


def parse_queues(text: str) -> range | None:
    """Parse `A-B` or `A:B` within the limits of `QUEUES`, or one number; None for anything else."""
    found = re.fullmatch(r"(\d{1,5})(?:[-:](\d{1,5}))?", text)
    if found is None:
        return None
    first = int(found[1])
    last = int(found[2]) if found[2] is not None else first
    good = first <= last <= LAST_QUEUE and last - first < _WORKERS_MAX
    return range(first, last + 1) if good else None


def parse_listen(text: str) -> tuple[str, int] | None:
    """Parse `HOST:PORT` or `[HOST]:PORT`; None for anything else."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):(\d{1,5})", text)
    if found is None or int(found[3]) > 65535:
        return None
    return found[1] or found[2], int(found[3])


def parse_settings(table: Mapping[str, Any], mistakes: list[Mistake]) -> Settings:
    """Read the table `[daemon]`, and add every mistake in it to `mistakes`.

    The result has the default in place of each mistaken value; it must not be used if there are
    mistakes.
    """
    hints = get_type_hints(Settings, include_extras=True)
    good: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{TABLE}.{key}"
        if key not in hints:
            hint = suggestion(key, tuple(hints)) if len(mistakes) < SUGGESTIONS_MAX else ""
            mistakes.append(
                Mistake(path, f"a setting of the daemon{hint}", f"unknown key {shown(key)}")
            )
            continue
        try:
            good[key] = msgspec.convert(value, hints[key])
        except msgspec.ValidationError:
            found = shown(value) + suggestion(value, _words(hints[key]))
            mistakes.append(Mistake(path, expected_value(hints[key]), found))
    settings = Settings(**good)
    _check_texts(settings, mistakes)
    return settings


def _check_texts(settings: Settings, mistakes: list[Mistake]) -> None:
    """Check constraints that the type of a setting does not express."""
    if "" in settings.logs:
        mistakes.append(Mistake(f"{TABLE}.log", "outputs that are not empty", shown("")))
    if settings.queues and parse_queues(settings.queues) is None:
        mistakes.append(
            Mistake(
                f"{TABLE}.queues",
                f"A-B with {QUEUES}, such as '0-3'",
                shown(settings.queues),
            )
        )
    if settings.evidence == "kernel-log" and len(settings.queue_numbers) > 1:
        mistakes.append(
            Mistake(
                f"{TABLE}.evidence",
                "another evidence with several queues, because the kernel's log serves one",
                shown(settings.evidence),
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
    if settings.pods_dir and (settings.pods_dir[0] != "/" or "\0" in settings.pods_dir):
        mistakes.append(
            Mistake(
                f"{TABLE}.pods_dir",
                "an absolute path, such as '/var/lib/cni/results'",
                shown(settings.pods_dir),
            )
        )


def bounds(name: str) -> tuple[int, int]:
    """The lowest and the highest value of a setting that is a whole number."""
    _, meta = get_args(get_type_hints(Settings, include_extras=True)[name])
    return meta.ge, meta.le


def expected_value(hint: Any) -> str:  # noqa: ANN401 - a type, as `get_type_hints` gives it
    """The values that a setting or an argument accepts, in words."""
    words = _words(hint)
    if words:
        return " or ".join(map(repr, words))
    if get_origin(hint) is Annotated:
        kind, meta = get_args(hint)
        plain = expected_value(kind)
        if meta.ge is not None:
            return f"{plain} from {meta.ge}" + ("" if meta.le is None else f" to {meta.le}")
        return f"{plain}, not empty" if meta.min_length else plain
    if get_origin(hint) is tuple:
        return f"an array, each {expected_value(get_args(hint)[0])}"
    if get_origin(hint) in {UnionType, Union}:
        kinds = [expected_value(kind) for kind in get_args(hint)]
        return (", or " if any("," in kind for kind in kinds) else " or ").join(kinds)
    return _KINDS[hint]


def _words(hint: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type, as `get_type_hints` gives it
    """The values of a setting that accepts one of a few words; else empty."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(one.value for one in hint)
    return ()


_KINDS: Final[dict[object, str]] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    type(None): "nothing",
    bool: "true or false",
}
