# SPDX-License-Identifier: MIT
"""`nfq-guard rules`: our own chains in the packet filter."""

import argparse
import json
import sys

import msgspec

from nfq_guard.cli.options import add_config, add_format
from nfq_guard.engine import Mode
from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, ConfigError, UsageError
from nfq_guard.firewall import Backend, Changes, Difference, FailMode, Firewall
from nfq_guard.firewall.render import render
from nfq_guard.service.config import load
from nfq_guard.service.firewall_spec import fail_mode_of, firewall_of
from nfq_guard.service.settings import QUEUES, Settings, parse_queues


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the four deeds and what they share."""
    parser.add_argument("deed", choices=("show", "install", "verify", "remove"))
    parser.add_argument(
        "--backend",
        choices=("auto", *Backend),
        help="auto: where the guard's rules are, else others' rules, else what iptables -V says",
    )
    parser.add_argument(
        "--family", choices=("4", "6", "both"), help="IPv4, IPv6 or both (default: as configured)"
    )
    queues = parser.add_mutually_exclusive_group()
    queues.add_argument("--queue", metavar="N", type=int, help="number of the queue")
    queues.add_argument("--queues", metavar="A:B", help="share the load among several queues")
    parser.add_argument(
        "--fail-mode", choices=tuple(FailMode), help="what becomes of packets that nobody judges"
    )
    parser.add_argument(
        "--max-rate-pps", metavar="N", type=int, help="packets a second that are queued at most"
    )
    add_config(parser)
    parser.add_argument(
        "--after",
        metavar="RESULT",
        help="with remove: how the service ended, in systemd's words ($SERVICE_RESULT); after "
        "anything but success, rules stay that hold the fail modes closed and kernel-drop",
    )
    parser.add_argument("--quiet", action="store_true", help="no output unless something is wrong")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; 1 when `verify` finds a difference."""
    settings = _settings(args)
    firewall = firewall_of(settings)
    as_json = args.format == "json"
    if args.deed == "show":
        sys.stdout.write(_shown_json(firewall) if as_json else firewall.show())
        return EXIT_OK
    if args.deed == "verify":
        found = firewall.verify()
        if found or not args.quiet:
            sys.stdout.write(_verified(found, as_json=as_json))
        return EXIT_NOT_FINE if found else EXIT_OK
    if args.deed == "install":
        changes = firewall.install()
    elif _keeps(settings, args.after):
        kept = f"rules kept: fail mode {fail_mode_of(settings)} holds after the result {args.after}"
        changes = Changes(done=(), notes=(kept,))
    else:
        changes = firewall.remove()
    if not args.quiet:
        sys.stdout.write(_changed(changes, as_json=as_json))
    return EXIT_OK


def _keeps(settings: Settings, result: str | None) -> bool:
    """Whether the fail mode wants our rules to outlive a daemon that ended so."""
    return result not in {None, "success"} and fail_mode_of(settings) is not FailMode.OPEN


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the file, with what the command line says instead."""
    given = {
        "backend": args.backend,
        "families": args.family,
        "fail_mode": args.fail_mode,
        "max_rate_pps": args.max_rate_pps,
    }
    changes: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if args.fail_mode is not None:
        # Asked for by name, it is not that of a dry-run.
        changes["mode"] = Mode.ENFORCE
    if args.queue is not None:
        changes |= {"queue": args.queue, "queues": ""}
    if args.queues is not None:
        if parse_queues(args.queues) is None:
            raise UsageError(f"queues: expected A:B with {QUEUES}, found {args.queues!r}")
        changes["queues"] = args.queues
    try:
        settings = load(args.config).settings
    except ConfigError as error:
        if args.deed != "remove":
            raise
        # A configuration broken since the start must not keep our rules from going.
        sys.stderr.write("".join(f"nfq-guard: {line}\n" for line in str(error).splitlines()))
        settings = Settings()
    return msgspec.structs.replace(settings, **changes)


def _shown_json(firewall: Firewall) -> str:
    choice = firewall.described_choice()
    rules = render(firewall.spec)
    record = {
        "backend": choice.backend,
        "why": choice.why,
        "offload": firewall.spec.offload_entries,
        "families": [{"family": int(family), "rules": rules} for family in firewall.families],
    }
    return json.dumps(record) + "\n"


def _verified(found: list[Difference], *, as_json: bool) -> str:
    if as_json:
        return "".join(
            json.dumps(
                {
                    "kind": one.kind,
                    "family": int(one.family),
                    "backend": one.backend,
                    "table": one.table,
                    "chain": one.chain,
                    "detail": one.detail,
                }
            )
            + "\n"
            for one in found
        )
    if not found:
        return "the rules are as they should be\n"
    return "".join(f"{one}\n" for one in found)


def _changed(changes: Changes, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"done": changes.done, "notes": changes.notes}) + "\n"
    lines = [*changes.done, *(f"note: {note}" for note in changes.notes)]
    return "".join(f"{line}\n" for line in lines or ["nothing to change"])
