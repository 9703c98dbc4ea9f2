# SPDX-License-Identifier: MIT
"""The sysctls of conntrack that affect its verdicts (`net.netfilter.nf_conntrack_*`)."""

from dataclasses import dataclass
from typing import Final, final

# `tcp_timeouts_s` by `flow.TcpState` number: NONE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT
# LAST_ACK TIME_WAIT CLOSE SYN_SENT2 (kernel.md 1.9; the last has no sysctl).
TCP_TIMEOUTS_S: Final = (0, 120, 60, 432_000, 120, 60, 30, 120, 10, 120)

# `sctp_timeouts_s` by `flow.SctpState` number: NONE CLOSED COOKIE_WAIT COOKIE_ECHOED ESTABLISHED
# SHUTDOWN_SENT SHUTDOWN_RECD SHUTDOWN_ACK_SENT HEARTBEAT_SENT HEARTBEAT_ACKED (kernel.md 1.14).
SCTP_TIMEOUTS_S: Final = (10, 10, 3, 3, 210, 3, 3, 3, 30, 210)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctls:
    """The sysctls of conntrack, with the kernel's defaults.

    Attributes:
        be_liberal: Whether only RST are checked against the window.
        loose: Whether a flow may be picked up in the middle.
        ignore_invalid_rst: Whether an RST below `td_maxack` goes to the window check instead of
            being INVALID; absent before kernel 5.14.
        checksum: Whether a wrong checksum makes a packet INVALID.
        expires: Whether entries expire at all; False replays a capture without timeouts.
        max_retrans: Retransmissions of a segment after which `max_retrans_timeout_s` holds.
        tcp_timeouts_s: Timeouts of TCP flows, by `flow.TcpState` number.
        max_retrans_timeout_s: Timeout of a flow that retransmits.
        unacknowledged_timeout_s: Timeout of a flow with unacknowledged data, or a closed window.
        udp_timeout_s: Timeout of a UDP flow before its reply.
        udp_stream_timeout_s: Timeout of a UDP flow with packets both ways for over two seconds.
        sctp_timeouts_s: Timeouts of SCTP flows, by `flow.SctpState` number.
        gre_timeout_s: Timeout of a GRE flow before its reply.
        gre_stream_timeout_s: Timeout of a GRE flow with packets both ways.
        icmp_timeout_s: Timeout of ICMP and ICMPv6 requests.
        generic_timeout_s: Timeout of protocols without a tracker.
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
    sctp_timeouts_s: tuple[int, ...] = SCTP_TIMEOUTS_S
    gre_timeout_s: int = 30
    gre_stream_timeout_s: int = 180
    icmp_timeout_s: int = 30
    generic_timeout_s: int = 600


DEFAULT_SYSCTLS: Final = Sysctls()
