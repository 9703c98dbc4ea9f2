# SPDX-License-Identifier: MIT
"""`nfq-guard rules`: the guard's own chains in the packet filter."""

import argparse
import shlex
import sys
from typing import TypedDict

import msgspec

from nfq_guard.cli.options import add_config, add_format, add_last_good, add_result, whole_number
from nfq_guard.cli.terminal import complain, json_text
from nfq_guard.engine import Mode
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, ConfigError, UsageError
from nfq_guard.firewall import Backend, Changes, Difference, FailMode, Firewall, Kind, Native
from nfq_guard.firewall.native import render as render_native
from nfq_guard.firewall.render import render
from nfq_guard.names import visible
from nfq_guard.policy.values import one_of
from nfq_guard.service.firewall_spec import fail_mode_of, firewall_of
from nfq_guard.service.last_good import load_settings
from nfq_guard.service.settings import QUEUES, Settings, bounds, parse_queues


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = ("show", "install", "verify", "remove")
    parser.add_argument("action", choices=actions, metavar="ACTION", help=", ".join(actions))
    parser.add_argument(
        "--backend",
        choices=("auto", *map(str, (*Backend, *Native))),
        metavar="NAME",
        help="legacy, nft or nftables, or auto: the backend that has the guard's rules, else the "
        "one that has other rules, "
        "else the one that iptables -V names; nftables: a native table",
    )
    parser.add_argument(
        "--family", choices=("4", "6", "both"), help="IPv4, IPv6 or both (default: as configured)"
    )
    queues = parser.add_mutually_exclusive_group()
    queues.add_argument(
        "--queue",
        metavar="N",
        type=whole_number(*bounds("queue")),
        help="number of the queue",
    )
    queues.add_argument(
        "--queues", metavar="A-B", help="share the load among several queues, such as 0-3"
    )
    parser.add_argument(
        "--fail-mode",
        choices=tuple(map(str, FailMode)),
        metavar="MODE",
        help=f"treatment of packets that are not judged: {one_of(tuple(FailMode))}",
    )
    parser.add_argument(
        "--max-rate-pps",
        metavar="N",
        type=whole_number(*bounds("max_rate_pps")),
        help="limit of queued packets per second; 0 for none",
    )
    add_config(parser)
    add_last_good(parser)
    add_result(parser, "with remove")
    parser.add_argument("--quiet", action="store_true", help="print nothing on success")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Run the action; exit status 1 if `verify` finds a difference."""
    if args.action == "remove":
        return _remove(args)
    if args.after is not None:
        raise UsageError("--after is for remove")
    settings = _settings(args)
    firewall = firewall_of(settings)
    as_json = args.format == "json"
    if args.action == "show":
        sys.stdout.write(_show_json(firewall) if as_json else firewall.show())
        return EXIT_OK
    if args.action == "verify":
        return _verify(args, settings, firewall)
    changes = firewall.install()
    if not args.quiet:
        sys.stdout.write(_format_changes(changes, as_json=as_json))
    return EXIT_OK


def _verify(args: argparse.Namespace, settings: Settings, firewall: Firewall) -> int:
    """Compare the installed rules with the required ones, of which there may be none."""
    as_json = args.format == "json"
    if settings.rules == "none":
        if not (args.quiet or as_json):
            sys.stdout.write(
                'nothing to verify: the setting `rules` = "none" leaves it to others\n'
            )
        return EXIT_OK
    differences = firewall.verify()
    remarks = firewall.remarks()
    dormant = [each for each in remarks if each.kind is Kind.DORMANT]
    remarks = dormant if args.quiet else remarks
    if differences or dormant or not args.quiet:
        sys.stdout.write(_format_differences(differences, remarks, as_json=as_json))
    if differences and not as_json:
        sys.stdout.write(f"next: `{_install_command(args)}` repairs this\n")
    return EXIT_NOT_FINE if differences or dormant else EXIT_OK


def _remove(args: argparse.Namespace) -> int:
    """Remove the rules, even if the configuration has become invalid."""
    settings: Settings | None = None
    try:
        settings = _settings(args)
    except ConfigError as error:
        complain(error)
    changes = removed(settings, args.after)
    if not args.quiet:
        sys.stdout.write(_format_changes(changes, as_json=args.format == "json"))
    return EXIT_OK


def _install_command(args: argparse.Namespace) -> str:
    """`rules install` with the options of this command."""
    given = {
        "--backend": args.backend,
        "--family": args.family,
        "--queue": args.queue,
        "--queues": args.queues,
        "--fail-mode": args.fail_mode,
        "--max-rate-pps": args.max_rate_pps,
        "--config": args.config,
        "--last-good": args.last_good,
    }
    options = [
        word
        for option, value in given.items()
        if value is not None
        for word in (option, str(value))
    ]
    return shlex.join(["nfq-guard", "rules", "install", *options])


def removed(settings: Settings | None, result: str | None) -> Changes:
    """Remove the rules, unless they must stay.

    Args:
        settings: The settings; None if the configuration cannot be read. The installed rules are
            then those of the last good configuration, and after a failure of the service they stay
            if they drop unjudged packets.
        result: The service's result, as named by systemd; None without a service.
    """
    firewall = firewall_of(Settings() if settings is None else settings)
    if settings is None:
        if result not in {None, "success"} and firewall.holds_back():
            return _kept(f"the configuration cannot be read after the result {result}")
    elif _rules_stay(settings, result):
        return _kept(f"fail mode {fail_mode_of(settings)} applies after the result {result}")
    return firewall.remove()


def _kept(reason: str) -> Changes:
    return Changes(done=(), notes=(f"rules kept: {reason}",))


def _rules_stay(settings: Settings, result: str | None) -> bool:
    """Whether the fail mode keeps the rules after a service that ended with `result`."""
    return result not in {None, "success"} and fail_mode_of(settings) is not FailMode.OPEN


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the file, overridden by the command line."""
    given = {
        "backend": args.backend,
        "families": args.family,
        "fail_mode": args.fail_mode,
        "max_rate_pps": args.max_rate_pps,
    }
    changes: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if args.fail_mode is not None:
        # An explicit fail mode must not be replaced by dry-run's `open`.
        changes["mode"] = Mode.ENFORCE
    if args.queue is not None:
        changes |= {"queue": args.queue, "queues": ""}
    if args.queues is not None:
        if parse_queues(args.queues) is None:
            raise UsageError(f"--queues: expected A-B with {QUEUES}, found {args.queues!r}")
        changes["queues"] = args.queues
    return msgspec.structs.replace(load_settings(args.config, args.last_good), **changes)


class FamilyRecord(TypedDict):
    """The rules that one family of addresses needs.

    Attributes:
        family: 4 or 6.
        rules: The rules, in the format of `iptables-restore --noflush` or `nft -f`. The backend
            `nftables` has one table for all families: each of them has its whole text, one of which
            is enough, and which replaces the table when it is loaded again.
    """

    family: int
    rules: str


class ShownRecord(TypedDict):
    """What `rules show` prints.

    Attributes:
        backend: The backend.
        why: The reason for the choice.
        offload: Maximum number of offloaded flows; null without offload.
        families: The rules of each family.
    """

    backend: str
    why: str
    offload: int | None
    families: list[FamilyRecord]


def _show_json(firewall: Firewall) -> str:
    choice = firewall.described_choice()
    if choice.backend is Native.NFTABLES:
        rules = render_native(firewall.spec, firewall.families)
    else:
        rules = render(firewall.spec, choice.backend)
    record: ShownRecord = {
        "backend": choice.backend,
        "why": choice.why,
        "offload": firewall.spec.offload_entries,
        "families": [{"family": int(family), "rules": rules} for family in firewall.families],
    }
    return f"{json_text(record)}\n"


class RuleDifferenceRecord(TypedDict):
    """One difference that `rules verify` found, or a remark about rules of others.

    The kinds `taken-before` and `policy-skipped` are remarks: they do not make the status 1.
    `dormant` is a table with our rules that is switched off: the kernel runs none of them.

    Attributes:
        kind: The kind of difference.
        family: 4 or 6.
        backend: The backend.
        table: Name of the table.
        chain: Name of the chain.
        detail: The difference, in one sentence.
    """

    kind: str
    family: int
    backend: str
    table: str
    chain: str
    detail: str


class ChangesRecord(TypedDict):
    """The result of `rules install` and `rules remove`.

    Attributes:
        done: Each change, one sentence each.
        notes: Notes for the operator.
    """

    done: tuple[str, ...]
    notes: tuple[str, ...]


def _difference(difference: Difference) -> RuleDifferenceRecord:
    return {
        "kind": difference.kind,
        "family": int(difference.family),
        "backend": difference.backend,
        "table": difference.table,
        "chain": difference.chain,
        "detail": difference.detail,
    }


def _format_differences(
    differences: list[Difference], remarks: list[Difference], *, as_json: bool
) -> str:
    if as_json:
        found = (*differences, *remarks)
        return "".join(f"{json_text(_difference(each))}\n" for each in found)
    asleep = [each for each in remarks if each.kind is Kind.DORMANT]
    lines = [str(each) for each in (*differences, *asleep)] or ["rules OK"]
    lines += [f"note: {each}" for each in remarks if each not in asleep]
    return "".join(f"{visible(line)}\n" for line in lines)


def _format_changes(changes: Changes, *, as_json: bool) -> str:
    if as_json:
        record: ChangesRecord = {"done": changes.done, "notes": changes.notes}
        return f"{json_text(record)}\n"
    lines = [*changes.done, *(f"note: {note}" for note in changes.notes)]
    return "".join(f"{visible(line)}\n" for line in lines or ["nothing to change"])
