# SPDX-License-Identifier: MIT
"""`nfq-guard run`: judges the packets of a queue until stopped."""

import argparse
from collections.abc import Sequence
from functools import partial

import msgspec

from nfq_guard.cli.options import add_config, add_last_good, whole_number
from nfq_guard.engine import Mode
from nfq_guard.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from nfq_guard.firewall.legacy_copy import LegacyCopy
from nfq_guard.raw_rules import RawReading
from nfq_guard.service import assemble, privileges
from nfq_guard.service.settings import QUEUES, Settings, bounds, parse_queues
from nfq_guard.telemetry.events import Event


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_config(parser)
    add_last_good(parser)
    parser.add_argument(
        "--mode",
        choices=[mode.value for mode in Mode],
        help="enforce: apply verdicts; dry-run: accept every packet and record what would be done",
    )
    queues = parser.add_mutually_exclusive_group()
    queues.add_argument(
        "--queue",
        type=whole_number(*bounds("queue")),
        metavar="N",
        help="number of the queue",
    )
    queues.add_argument(
        "--queues", metavar="A-B", help="several queues, one worker each, such as 0-3"
    )
    rules = parser.add_mutually_exclusive_group()
    rules.add_argument(
        "--no-rules", action="store_true", help="do not install or remove packet filter rules"
    )
    rules.add_argument(
        "--keep-rules",
        action="store_true",
        help="as --no-rules, but restore the rules when they are changed, and exit if that fails, "
        'unless the setting `rules` is "none"',
    )


def run(args: argparse.Namespace) -> int:
    """Run the daemon until SIGTERM, exit status 0, or SIGINT, exit status 130."""
    interrupted = assemble.run(
        args.config,
        lambda settings: _overridden(settings, args),
        partial(privileges.give_up, last_good_at=args.last_good),
        _survey,
        args.last_good,
        _raw_rules,
    )
    return EXIT_INTERRUPTED if interrupted else EXIT_OK


# The doctor is imported after the start, in the threads that need it: the import would take a
# quarter of the CPU time of the start, during which no packet is judged.


def _survey(queues: Sequence[int], copy: LegacyCopy) -> Event:
    from nfq_guard.doctor import host  # noqa: PLC0415 - see above

    return host.event(queues, copy)


def _raw_rules(queues: Sequence[int], copy: LegacyCopy) -> RawReading:
    from nfq_guard.doctor import before_conntrack  # noqa: PLC0415 - see above

    return before_conntrack.read(queues, copy)


def _overridden(settings: Settings, args: argparse.Namespace) -> Settings:
    """The settings of the file, overridden by the command line."""
    changes: dict[str, object] = {}
    if args.mode is not None:
        changes["mode"] = Mode(args.mode)
    if args.no_rules:
        changes["rules"] = "none"
    if args.keep_rules and settings.rules != "none":
        changes["rules"] = "keep"
    if args.queue is not None:
        changes["queue"] = args.queue
        changes["queues"] = ""
    if args.queues is not None:
        if parse_queues(args.queues) is None:
            raise UsageError(f"--queues: expected A-B with {QUEUES}, found {args.queues!r}")
        changes["queues"] = args.queues
    return msgspec.structs.replace(settings, **changes)
