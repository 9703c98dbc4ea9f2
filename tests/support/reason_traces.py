# SPDX-License-Identifier: MIT
"""Traces whose last segment is INVALID, by reason, for the live kernel and the documentation."""

from typing import Final

from nfq_guard.finding import Reason

OPEN: Final = (
    "> S 0:0(0) win 65535 <mss 1460,sackOK,wscale 7>",
    "< S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK,wscale 7>",
    "> . 1:1(0) ack 1 win 512",
    "> P. 1:101(100) ack 1 win 512",
    "< P. 1:201(200) ack 101 win 512",
    "> . 101:101(0) ack 201 win 512",
)
# Each trace ends with the INVALID packet.
REASON_TRACES: Final[dict[Reason, tuple[tuple[str, ...], ...]]] = {
    Reason.SEQ_OVER: (
        (*OPEN, "< P. 300000:300001(1) ack 101 win 512"),
        (*OPEN, "> R. 900000:900000(0) ack 201 win 0"),
    ),
    Reason.ACK_OVER: (
        (*OPEN, "< . 201:201(0) ack 102 win 512"),
        (*OPEN, "> . 101:101(0) ack 201 win 512 <sack 300:400>"),
    ),
    Reason.RST_OUTSIDE: (
        (*OPEN, "< R 200:200(0)"),
        (*OPEN, "> R. 1:1(0) ack 201 win 0"),
    ),
    Reason.BAD_TRANSITION: (
        (*OPEN, "> S. 101:101(0) ack 201"),
        (*OPEN, "< S 201:201(0)"),
        ("> S 0:0(0)", "> . 1:1(0) ack 1"),
        ("> S 0:0(0)", "> F. 1:1(0) ack 1"),
        ("> S 0:0(0)", "> S. 1:1(0) ack 1"),
        ("> S 0:0(0)", "< F. 0:0(0) ack 1"),
        ("> S 0:0(0)", "< S. 0:0(0) ack 1", "< S 0:0(0)"),
        ("> S 0:0(0)", "< S. 0:0(0) ack 1", "> . 1:1(0) ack 1", "> F. 1:1(0) ack 1", "< S 1:1(0)"),
    ),
    Reason.NO_ENTRY: (("< S. 0:0(0) ack 1",), ("> F. 1:1(0) ack 1",), ("> R 1:1(0)",)),
    Reason.BAD_FLAGS: (
        (*OPEN, "> SF 101:101(0)"),
        (*OPEN, "< - 201:201(0)"),
        ("> SR 0:0(0)",),
    ),
}

# The SYN is ignored, as the entry may be of an earlier connection. The RST is below what was
# acknowledged, and acknowledges data that was not sent: after the SYN only the latter is checked.
# A copy of the RST fails the former check.
AFTER_A_SYN: Final = (
    *OPEN,
    "> S 900000:900000(0) win 512",
    "< R. 100:100(0) ack 5000 win 0",
    "< R. 100:100(0) ack 5000 win 0",
)
