# SPDX-License-Identifier: MIT
"""`nfq-guard prepare`: the part of the daemon's start that takes root."""

import argparse
import sys

from nfq_guard.cli.options import add_config, add_last_good
from nfq_guard.errors import EXIT_OK
from nfq_guard.flows import pins
from nfq_guard.service import proc_files
from nfq_guard.service.last_good import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_config(parser)
    add_last_good(parser)
    parser.add_argument(
        "--user",
        default=pins.USER,
        metavar="NAME",
        help=f"the user that the daemon runs as (default: {pins.USER})",
    )
    parser.add_argument("--remove", action="store_true", help="remove what this command made")
    parser.add_argument("--quiet", action="store_true", help="print nothing on success")


def run(args: argparse.Namespace) -> int:
    """Pin the program once for each queue, or remove the pins; and share files of /proc."""
    instance = pins.instance_of(args.config)
    if args.remove:
        proc_files.share(0)
        pins.remove(instance)
        return EXIT_OK
    count = len(load_settings(args.config, args.last_good).queue_numbers)
    for problem in proc_files.share(pins.account(args.user).pw_gid):
        sys.stderr.write(f"nfq-guard: {problem}\n")
    folder = pins.prepare(instance, count, args.user)
    if not args.quiet:
        sys.stdout.write(f"pinned in {folder}: {count} of the BPF program, one a queue\n")
    return EXIT_OK
