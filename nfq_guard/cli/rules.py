# SPDX-License-Identifier: MIT
"""`nfq-guard rules`: our own chains in the packet filter."""

import argparse
import json
import sys
from typing import Final

from nfq_guard.errors import EXIT_NOT_FINE, EXIT_OK, UsageError
from nfq_guard.firewall import (
    BOTH_FAMILIES,
    Backend,
    Changes,
    Difference,
    FailMode,
    Family,
    Firewall,
    RulesSpec,
)
from nfq_guard.firewall.render import render

_FAMILIES: Final = {"4": (Family.IPV4,), "6": (Family.IPV6,), "both": BOTH_FAMILIES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the four deeds and what they share."""
    parser.add_argument("deed", choices=("show", "install", "verify", "remove"))
    parser.add_argument(
        "--backend",
        choices=("auto", *Backend),
        default="auto",
        help="auto: the one that holds our rules, else others' rules, else what iptables -V says",
    )
    parser.add_argument("--family", choices=tuple(_FAMILIES), default="both")
    queues = parser.add_mutually_exclusive_group()
    queues.add_argument("--queue", metavar="N", type=int)
    queues.add_argument("--queues", metavar="A:B", help="share the load among several queues")
    parser.add_argument("--fail-mode", choices=tuple(FailMode), type=str)
    parser.add_argument("--max-rate-pps", metavar="N", type=int)
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 when `verify` finds a difference."""
    firewall = _firewall(args)
    as_json = args.format == "json"
    if args.deed == "show":
        sys.stdout.write(_shown_json(firewall) if as_json else firewall.show())
        return EXIT_OK
    if args.deed == "verify":
        found = firewall.verify()
        sys.stdout.write(_verified(found, as_json=as_json))
        return EXIT_NOT_FINE if found else EXIT_OK
    changes = firewall.install() if args.deed == "install" else firewall.remove()
    sys.stdout.write(_changed(changes, as_json=as_json))
    return EXIT_OK


def _firewall(args: argparse.Namespace) -> Firewall:
    first, last = _queues(args)
    spec = RulesSpec(
        first_queue=first,
        last_queue=last,
        fail_mode=FailMode(args.fail_mode or FailMode.OPEN),
        max_rate_pps=args.max_rate_pps,
    )
    backend = None if args.backend == "auto" else Backend(args.backend)
    return Firewall(spec, backend, _FAMILIES[args.family])


def _queues(args: argparse.Namespace) -> tuple[int, int]:
    if args.queues is None:
        number = args.queue or 0
        return number, number
    first, _, last = args.queues.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UsageError(f"--queues: expected A:B such as 0:3, found {args.queues}")
    return int(first), int(last)


def _shown_json(firewall: Firewall) -> str:
    choice = firewall.described_choice()
    rules = render(firewall.spec)
    record = {
        "backend": choice.backend,
        "why": choice.why,
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
