# SPDX-License-Identifier: MIT
"""Rules that root installs for a daemon whose sandbox forbids it to change them.

A daemon with CAP_NET_ADMIN alone cannot use iptables-legacy. The command that changes its mode, if
root runs it, installs the rules of the new mode in its place.
"""

import os
from pathlib import Path

import msgspec

from nfq_guard.errors import Mistake, NfqGuardError, UsageError
from nfq_guard.firewall import FailMode
from nfq_guard.service.control.client import Client, RefusedError
from nfq_guard.service.control.socket_path import is_here
from nfq_guard.service.firewall_spec import fail_mode_of, firewall_of
from nfq_guard.service.settings import Settings, parse_settings


def install(client: Client, path: Path, problem: str) -> str | None:
    """Install the rules of the daemon's mode. Returns the remaining problem, or None.

    Args:
        client: A connection to the daemon.
        path: Its control socket.
        problem: Why the daemon could not install them.
    """
    if os.geteuid() != 0 or not is_here(path):
        return problem
    try:
        wanted = client.request("rules_wanted")
    except RefusedError:
        return problem
    installed: FailMode | None = None
    try:
        settings = msgspec.convert(wanted, Settings)
        mistakes: list[Mistake] = []
        parse_settings(wanted, mistakes)
        if mistakes:
            raise UsageError(f"its settings: {mistakes[0]}")
        firewall_of(settings).install()
        installed = fail_mode_of(settings)
    except msgspec.ValidationError as error:
        return f"{problem}; the daemon has settings of another version: {error}"
    except NfqGuardError as error:
        return f"{problem}; root could not install them either: {error}"
    finally:
        if installed is None:
            client.request("rules_not_installed")
        else:
            client.request("rules_installed", fail_mode=installed)
    return None
