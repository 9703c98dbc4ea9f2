# SPDX-License-Identifier: MIT
"""What the sandbox of the shipped unit keeps a daemon from doing, for `check`."""

import ipaddress
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from nfq_guard.policy.lint import Caution
from nfq_guard.service.settings import TABLE, Settings, parse_listen

# RuntimeDirectory, StateDirectory and LogsDirectory of the unit.
_WRITABLE: Final = ("/run/nfq-guard", "/var/lib/nfq-guard", "/var/log/nfq-guard")


def cautions(settings: Settings, source: str) -> Iterator[Caution]:
    """Settings of the file `source` that work in the shipped unit only with a drop-in."""
    address = parse_listen(settings.metrics_listen)
    if address is not None and not _is_loopback(address[0]):
        yield Caution(
            f"{TABLE}.metrics_listen",
            source,
            "",
            f"{settings.metrics_listen} is reached from this host only where the service unit runs "
            "the daemon; a drop-in with IPAddressAllow= names the networks that may connect",
        )
    file = settings.metrics_file
    if file and not any(PurePosixPath(file).is_relative_to(root) for root in _WRITABLE):
        yield Caution(
            f"{TABLE}.metrics_file",
            source,
            "",
            f"the service unit may write only in {', '.join(_WRITABLE)}; a drop-in with "
            f"ReadWritePaths= adds the directory of {file}",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
