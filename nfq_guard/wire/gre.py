# SPDX-License-Identifier: MIT
"""Decodes GRE headers as far as conntrack does (RFC 2784, RFC 2637)."""

from typing import Final

from nfq_guard.wire.packet import GreHeader

_PPP: Final = 0x880B
# Version 1 has its call identifier in octets 6 and 7.
_CALL_LEN: Final = 8

# The capture is truncated, not the packet.
SNAPPED_IN_HEADER: Final = "capture ends inside the GRE header"
WITHOUT_PPP: Final = "GRE version 1 that does not carry PPP"


def decode_header(octets: bytes, offset: int, wire_len: int) -> GreHeader | str:
    """Decode the GRE header at `offset` of `octets`; returns a fixed phrase if it is refused.

    Conntrack treats a header that is too short for version 1 as version 0.
    """
    if wire_len < _CALL_LEN:
        return GreHeader(0, 0)
    if len(octets) < offset + _CALL_LEN:
        return SNAPPED_IN_HEADER
    version = octets[offset + 1] & 7
    if version != 1:
        return GreHeader(version, 0)
    if octets[offset + 2] << 8 | octets[offset + 3] != _PPP:
        return WITHOUT_PPP
    return GreHeader(version, octets[offset + 6] << 8 | octets[offset + 7])
