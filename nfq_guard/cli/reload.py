# SPDX-License-Identifier: MIT
"""`nfq-guard reload`: makes the running daemon reload its policy."""

import argparse
import errno
import os
import signal
import sys
from pathlib import Path
from typing import Final

from nfq_guard.cli import DAEMON, command_in, rules_of_root
from nfq_guard.cli.answers import RELOAD, checked
from nfq_guard.cli.daemon import add_socket, connected
from nfq_guard.cli.options import add_config, add_format, whole_number
from nfq_guard.cli.terminal import complain, write_json, write_line
from nfq_guard.errors import (
    EXIT_NOT_FINE,
    EXIT_OK,
    ConfigError,
    NotRunningError,
    PrivilegeError,
    UnavailableError,
)
from nfq_guard.names import counted
from nfq_guard.netlink.owner import guard_words
from nfq_guard.service.config import load_config
from nfq_guard.service.control.socket_path import of_process

# PID_MAX_LIMIT of 64-bit kernels.
_LARGEST_PID: Final = 1 << 22


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until the policy is in force or refused; a refusal prints all mistakes "
        "(default: --wait)",
    )
    add_socket(parser)
    parser.add_argument(
        "--pid",
        type=whole_number(1, _LARGEST_PID),
        metavar="N",
        help="process id of the daemon, whose control socket is used, wherever it is; if the "
        "daemon has none, the file of --config is checked and the daemon gets SIGHUP",
    )
    add_config(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Reload the policy; the current one stays if the new one is invalid.

    As root, installs the rules of a changed mode if the daemon is not allowed to. Exit status 1 if
    the policy is refused, changed settings require a restart, or the rules could not follow a
    changed mode.
    """
    if args.pid is not None:
        args.socket = of_process(args.pid)
        if args.socket is None:
            return _signal(args)
    with connected(args) as client:
        message = client.request("reload", wait=args.wait)
        if args.wait:
            checked(message, RELOAD)
        if args.wait and "rules_problem" in message:
            left = rules_of_root.install(client, args.socket, message.pop("rules_problem"))
            message |= {} if left is None else {"rules_problem": left}
    restart_for = message.get("restart_for", ()) if args.wait else ()
    problem = message.get("rules_problem") if args.wait else None
    if args.format == "json":
        write_json(message)
    elif args.wait:
        rules = counted(message["rules"], "rule")
        write_line(f"policy {message['policy']} with {rules} is in force")
        if "mode" in message:
            write_line(f"mode is {message['mode']}, as the file now says")
        for name in restart_for:
            sys.stderr.write(f"nfq-guard: daemon.{name} changed too; that requires a restart\n")
        if problem is not None:
            sys.stderr.write(f"nfq-guard: the rules keep their fail mode: {problem}\n")
    else:
        write_line("the daemon reads its policy; its log and `nfq-guard status` show the outcome")
    return EXIT_NOT_FINE if restart_for or problem is not None else EXIT_OK


def _signal(args: argparse.Namespace) -> int:
    """Make a daemon without a control socket reload a file without mistakes.

    The descriptor keeps the process id from passing to another process between check and signal.
    """
    try:
        process = os.pidfd_open(args.pid)
    except OSError as error:
        # EINVAL: a thread; older kernels have no other error for it.
        if error.errno in {errno.ESRCH, errno.EINVAL}:
            raise NotRunningError(f"no process {args.pid} is running") from None
        raise UnavailableError(f"--pid: the kernel refuses pidfd_open: {error.strerror}") from None
    try:
        _require_daemon(args.pid)
        try:
            load_config(args.config)
        except ConfigError as error:
            # As a daemon with a control socket refuses it.
            complain(error)
            return EXIT_NOT_FINE
        signal.pidfd_send_signal(process, signal.SIGHUP)
    except ProcessLookupError:
        raise NotRunningError(f"no process {args.pid} is running") from None
    except PermissionError:
        raise PrivilegeError(f"the process {args.pid} is of another user") from None
    finally:
        os.close(process)
    text = "the daemon has no control socket; its log shows the outcome"
    if args.format == "json":
        write_json(text)
    else:
        write_line(text)
    return EXIT_OK


def _require_daemon(pid: int) -> None:
    """Raise unless the process is a daemon: SIGHUP would end most others.

    Raises:
        NotRunningError: It is another program, or another command of this one.
        PrivilegeError: /proc hides it from this user.
    """
    try:
        line = Path("/proc", str(pid), "cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise PrivilegeError(
            f"/proc hides the process {pid} from this user: cannot tell whether it is nfq-guard"
        ) from None
    if command_in(guard_words(line.split("\0")) or ()) != DAEMON:
        raise NotRunningError(f"the process {pid} is not the daemon of nfq-guard")
