# SPDX-License-Identifier: MIT
"""The rules of legacy iptables as root read them, for a daemon that cannot run its programs.

iptables-legacy-save opens a raw socket, which takes CAP_NET_RAW and a sandbox that allows it. A
digest of each table, which a daemon with CAP_NET_ADMIN can compute anew, shows whether the copy is
still what the kernel has.
"""

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, final

import msgspec

from nfq_guard.errors import NfqGuardError
from nfq_guard.firewall import legacy_tables
from nfq_guard.firewall.saved import Saved, parse
from nfq_guard.firewall.spec import Backend, Family
from nfq_guard.firewall.xtables import System, Xtables

CONTENT_BYTES_MAX: Final = 8 << 20
"""Greater copies are not made; the tables of a host with 10,000 rules have about 1 MB."""

_DOMAINS: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class _Copied(msgspec.Struct, frozen=True):
    """One family: the output of iptables-legacy-save, and the digests of the tables by name."""

    text: str
    digests: dict[str, str]


def made() -> bytes:
    """A copy of the tables of both families; empty where there is none, or one that is too great.

    Takes root.
    """
    found: dict[int, _Copied] = {}
    for family, domain in _DOMAINS.items():
        programs = Xtables(System(), Backend.LEGACY, family)
        with suppress(OSError, NfqGuardError), socket.socket(domain, socket.SOCK_DGRAM) as through:
            digests = legacy_tables.digests(through)
            if digests and programs.missing() is None:
                # A change in between makes the copy an old one, which its reader sees.
                found[int(family)] = _Copied(programs.text(), digests)
    content = msgspec.json.encode(found)
    return content if found and len(content) <= CONTENT_BYTES_MAX else b""


@final
class LegacyCopy:
    """A copy, beside the tables of the kernel."""

    def __init__(self, content: bytes, sockets: Sequence[socket.socket]) -> None:
        """Take a copy.

        Args:
            content: As `made` returned it.
            sockets: At most one a family, through which the tables are read; they stay the
                caller's.
        """
        self._sockets = {int(one.family): one for one in sockets}
        self._copied: dict[int, _Copied] = {}
        with suppress(msgspec.DecodeError):
            self._copied = msgspec.json.decode(content, type=dict[int, _Copied])

    def has(self, family: Family) -> bool:
        """Whether there is a copy of a family's tables."""
        return int(family) in self._copied

    def saved(self, family: Family) -> Saved:
        """The tables of a family that has a copy."""
        return parse(self._copied[int(family)].text)

    def changed(self, family: Family) -> list[str]:
        """The tables that the kernel has and that are not, or no longer, as in the copy."""
        through = self._sockets.get(int(_DOMAINS[family]))
        copied = self._copied[int(family)].digests
        if through is None:
            return list(copied)
        live = legacy_tables.digests(through)
        return sorted(
            name for name in live.keys() | copied.keys() if live.get(name) != copied.get(name)
        )
