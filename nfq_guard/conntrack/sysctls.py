# SPDX-License-Identifier: MIT
"""The sysctls that conntrack judges by, as one value (`net.netfilter.nf_conntrack_*`)."""

from dataclasses import dataclass
from typing import Final, final

# `tcp_timeouts_s` by `flow.TcpState` number: NONE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT
# LAST_ACK TIME_WAIT CLOSE SYN_SENT2 (kernel.md 1.9; the last has no sysctl of its own).
TCP_TIMEOUTS_S: Final = (0, 120, 60, 432_000, 120, 60, 30, 120, 10, 120)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctls:
    """What an operator can set; the defaults are the kernel's.

    Attributes:
        be_liberal: Windows are not held against segments, only RST are.
        loose: A flow may be picked up in the middle.
        ignore_invalid_rst: A RST below `td_maxack` goes to the window check instead of INVALID;
            kernels before 5.14 do not have it.
        checksum: Checksums are verified, where the caller could tell.
        expires: Whether entries expire at all; False replays a capture without timeouts.
        max_retrans: How often a segment is seen again before `max_retrans_timeout_s` holds.
        tcp_timeouts_s: By `flow.TcpState` number.
        max_retrans_timeout_s: For a flow that retransmits.
        unacknowledged_timeout_s: For a flow with data under way, or a shut window.
        udp_timeout_s: Before a reply.
        udp_stream_timeout_s: For a flow that went both ways for more than two seconds.
        icmp_timeout_s: For requests of ICMP and ICMPv6.
        generic_timeout_s: For protocols that conntrack knows nothing about.
    """

    be_liberal: bool = False
    loose: bool = True
    ignore_invalid_rst: bool = False
    checksum: bool = True
    expires: bool = True
    max_retrans: int = 3
    tcp_timeouts_s: tuple[int, ...] = TCP_TIMEOUTS_S
    max_retrans_timeout_s: int = 300
    unacknowledged_timeout_s: int = 300
    udp_timeout_s: int = 30
    udp_stream_timeout_s: int = 120
    icmp_timeout_s: int = 30
    generic_timeout_s: int = 600


DEFAULT_SYSCTLS: Final = Sysctls()
