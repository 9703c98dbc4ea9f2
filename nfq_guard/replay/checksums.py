# SPDX-License-Identifier: MIT
"""Transport checksums in captures, where a wrong one is most often an unfinished one.

A packet captured on the host that sends it goes by before the NIC computes its checksum. Linux
leaves the sum of the pseudo-header in the field, other systems leave whatever they like.
"""

from collections import OrderedDict
from enum import StrEnum
from typing import Final, final

from nfq_guard.wire.checksum import checksum_ok, checksum_unfinished
from nfq_guard.wire.packet import Packet

# Sources of which a right checksum was seen. A scan from forged addresses would fill any table;
# the one that was seen longest ago goes first, and is trusted again at its next packet.
_MOST_SOURCES: Final = 65_536


class ChecksumMode(StrEnum):
    """What a wrong checksum means."""

    AUTO = "auto"
    VERIFY = "verify"
    IGNORE = "ignore"


@final
class ChecksumJudge:
    """Tells broken checksums from unfinished ones.

    In `auto` mode a wrong checksum counts as broken only if it is not the sum of the
    pseudo-header, and only from a source that has sent a right one before: of a host all of whose
    packets are wrong, the capture was taken on the host.
    """

    def __init__(self, mode: ChecksumMode) -> None:
        """Judge by `mode`."""
        self._ignores = mode is ChecksumMode.IGNORE
        self._auto = mode is ChecksumMode.AUTO
        self._trusted: OrderedDict[bytes, None] = OrderedDict()

    def ok(self, packet: Packet, octets: bytes) -> bool | None:
        """Whether the transport checksum is right; None where it is not to be judged."""
        if self._ignores:
            return None
        right = checksum_ok(packet, octets)
        if right is None or not self._auto:
            return right
        trusted = self._trusted
        if right:
            if packet.src not in trusted:
                trusted[packet.src] = None
                if len(trusted) > _MOST_SOURCES:
                    trusted.popitem(last=False)
            return True
        if packet.src in trusted and not checksum_unfinished(packet):
            return False
        return None
