# SPDX-License-Identifier: MIT
"""Arguments that `replay`, `explain` and `whatif` share."""

import argparse
import re
from collections.abc import Sequence
from typing import Final

from nfq_guard.capture.frame import CaptureError, frame_name
from nfq_guard.capture.links import LINKS, NAMES, name_of
from nfq_guard.cli.kernel_choice import HELP, kernel_of, warn
from nfq_guard.cli.options import whole_number
from nfq_guard.conntrack.kernel_rules import KERNEL_6_1
from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS, Sysctls
from nfq_guard.conntrack.table import DEFAULT_CAPACITY
from nfq_guard.errors import UsageError
from nfq_guard.flow import NAT_STATUS, SctpState, TcpState
from nfq_guard.names import counted
from nfq_guard.policy.default import default_policy
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.policy.values import one_of
from nfq_guard.replay.checksums import ChecksumMode
from nfq_guard.replay.packets import UNKNOWN_LINK
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import DEFAULT_WSCALE, ReplaySettings
from nfq_guard.wire.tcp import MAX_WINDOW_SCALE

# Names for `--timeout` besides the TCP states, with their defaults.
_OTHER_TIMEOUTS_S: Final = {
    "MAX_RETRANS": DEFAULT_SYSCTLS.max_retrans_timeout_s,
    "UNACKNOWLEDGED": DEFAULT_SYSCTLS.unacknowledged_timeout_s,
    "UDP": DEFAULT_SYSCTLS.udp_timeout_s,
    "UDP_STREAM": DEFAULT_SYSCTLS.udp_stream_timeout_s,
    "ICMP": DEFAULT_SYSCTLS.icmp_timeout_s,
    "GRE": DEFAULT_SYSCTLS.gre_timeout_s,
    "GRE_STREAM": DEFAULT_SYSCTLS.gre_stream_timeout_s,
    "GENERIC": DEFAULT_SYSCTLS.generic_timeout_s,
}
# SCTP states have a prefix; the kernel has sysctls for these states only.
_SCTP_STATES: Final = {
    f"SCTP_{state.name}": int(state)
    for state in SctpState
    if state not in {SctpState.NONE, SctpState.HEARTBEAT_ACKED}
}
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_TCP_STATES: Final = tuple(state.name for state in TcpState if state is not TcpState.NONE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare all arguments."""
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="a file or preset:NAME instead of the default policy",
    )
    add_replay_arguments(parser)


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the replay itself, without the policy."""
    parser.add_argument(
        "--kernel",
        metavar="RELEASE",
        default=KERNEL_6_1.name,
        help=f"the kernel whose conntrack rules apply: {HELP} (default: %(default)s)",
    )
    parser.add_argument(
        "--checksum",
        choices=[mode.value for mode in ChecksumMode],
        default=ChecksumMode.AUTO.value,
        help="wrong checksums: distinguish unfinished from broken ones, treat all as broken, or "
        "ignore them (default: %(default)s)",
    )
    parser.add_argument(
        "--assume-nat",
        choices=[str(nat) for nat in NAT_STATUS],
        metavar="NAT",
        default="none",
        help="how the host translates these flows, for the policy; a capture does not show it: "
        f"{one_of(tuple(NAT_STATUS))} (default: %(default)s)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="treat the capture as complete: no finding is in doubt because frames are missing or "
        "out of order",
    )
    parser.add_argument(
        "--assume-wscale",
        metavar="N",
        type=whole_number(0, MAX_WINDOW_SCALE),
        default=DEFAULT_WSCALE,
        help="window scale of flows that began before the capture, 0 to 14 (default: %(default)s)",
    )
    parser.add_argument(
        "--flow-table",
        metavar="N",
        type=whole_number(1),
        default=DEFAULT_CAPACITY,
        help="maximum number of flows followed at once, each about 2 kB of memory (default: "
        "%(default)s)",
    )
    sysctls = parser.add_argument_group(
        "conntrack sysctls", "As net.netfilter.nf_conntrack_*; the defaults are the kernel's."
    )
    sysctls.add_argument("--be-liberal", action="store_true", help="tcp_be_liberal=1")
    sysctls.add_argument("--no-loose", action="store_true", help="tcp_loose=0")
    sysctls.add_argument(
        "--ignore-invalid-rst", action="store_true", help="tcp_ignore_invalid_rst=1"
    )
    sysctls.add_argument(
        "--max-retrans",
        metavar="N",
        type=whole_number(0),
        default=DEFAULT_SYSCTLS.max_retrans,
        help="tcp_max_retrans (default: %(default)s)",
    )
    sysctls.add_argument(
        "--timeout",
        metavar="STATE=S",
        action="append",
        default=[],
        help="seconds in a TCP state, as in CLOSE_WAIT=60, or one of "
        + ", ".join((*_SCTP_STATES, *_OTHER_TIMEOUTS_S)),
    )
    sysctls.add_argument("--no-timeouts", action="store_true", help="flows never expire")


def add_decapsulate(parser: argparse.ArgumentParser) -> None:
    """Declare `--decapsulate`, for commands that list packets rather than one frame."""
    parser.add_argument(
        "--decapsulate",
        action="store_true",
        help="judge the packets inside VXLAN, GENEVE, GRE, IPIP and IP6IP too, with entries of "
        "their own",
    )


def settings_of(
    args: argparse.Namespace, *, every: bool = False, decapsulate: bool = False
) -> ReplaySettings:
    """The settings by the arguments; warns if the kernel's rules are a guess.

    Raises:
        UsageError: A value is not valid.
    """
    guess = kernel_of(args.kernel)
    return ReplaySettings(
        kernel=guess.rules,
        kernel_doubt=guess.doubt,
        sysctls=_sysctls(args),
        checksums=ChecksumMode(args.checksum),
        capacity=args.flow_table,
        nat_status=NAT_STATUS[args.assume_nat],
        every=every,
        strict=args.strict,
        decapsulate=decapsulate,
        assumed_wscale=args.assume_wscale,
    )


def _sysctls(args: argparse.Namespace) -> Sysctls:
    tcp = list(DEFAULT_SYSCTLS.tcp_timeouts_s)
    sctp = list(DEFAULT_SYSCTLS.sctp_timeouts_s)
    others = dict(_OTHER_TIMEOUTS_S)
    for text in args.timeout:
        name, seconds = _timeout(text)
        if name in _TCP_STATES:
            tcp[TcpState[name]] = seconds
        elif name in _SCTP_STATES:
            sctp[_SCTP_STATES[name]] = seconds
        else:
            others[name] = seconds
    return Sysctls(
        be_liberal=args.be_liberal,
        loose=not args.no_loose,
        ignore_invalid_rst=args.ignore_invalid_rst,
        expires=not args.no_timeouts,
        max_retrans=args.max_retrans,
        tcp_timeouts_s=tuple(tcp),
        max_retrans_timeout_s=others["MAX_RETRANS"],
        unacknowledged_timeout_s=others["UNACKNOWLEDGED"],
        udp_timeout_s=others["UDP"],
        udp_stream_timeout_s=others["UDP_STREAM"],
        sctp_timeouts_s=tuple(sctp),
        gre_timeout_s=others["GRE"],
        gre_stream_timeout_s=others["GRE_STREAM"],
        icmp_timeout_s=others["ICMP"],
        generic_timeout_s=others["GENERIC"],
    )


def _timeout(text: str) -> tuple[str, int]:
    name, _, seconds = text.partition("=")
    name = name.strip().upper().replace("-", "_")
    known = (*_TCP_STATES, *_SCTP_STATES, *_OTHER_TIMEOUTS_S)
    if name not in known:
        raise UsageError(
            f"--timeout: expected STATE=S with one of {', '.join(known)}, found {text!r}"
        )
    if _SECONDS.fullmatch(seconds.strip()) is None:
        raise UsageError(f"--timeout: expected whole seconds for {name}, found {seconds[:60]!r}")
    return name, int(seconds)


def policy_of(args: argparse.Namespace) -> CompiledPolicy:
    """The policy that the arguments name, or the default policy.

    Raises:
        ConfigError: It cannot be used.
    """
    if args.policy is None:
        return default_policy()
    from nfq_guard.policyfile import load_compiled  # noqa: PLC0415 - 8 ms, for a policy alone

    return load_compiled(args.policy)


def refuse_unknown_links(replayer: Replayer, names: Sequence[str]) -> None:
    """Raise if all frames have an unsupported link type; warn if some have.

    Raises:
        CaptureError: Every frame has an unsupported link type.
    """
    if not replayer.reader.unknown_links:
        return
    links = ", ".join(name_of(number) for number in sorted(replayer.reader.unknown_links))
    known = ", ".join(dict.fromkeys(NAMES[number] for number in sorted(LINKS)))
    unread = replayer.reader.without_packet[UNKNOWN_LINK]
    message = (
        f"{', '.join(names)}: unsupported link type {links} in {counted(unread, 'frame')}, first "
        f"in {frame_name(min(replayer.reader.unknown_links.values()))} (supported: {known})"
    )
    if unread == replayer.frames:
        raise CaptureError(message)
    warn(message)
