# SPDX-License-Identifier: MIT
"""What the kernel's log says of packets or lines that have no line of their own."""

import re
from typing import Final, NamedTuple, final

# No name of a function that limits the rate of other lines than those of the network.
_LIMITED: Final = r"(?:net_ratelimit|_{0,2}(?:nf|ipt?|ip6|xt|nfnl|nfqnl)_\w{1,60})"


@final
class Notice(NamedTuple):
    """A kind of such a line.

    Attributes:
        title: What happened, in short.
        unit: What `count` counts: `packet` or `line`.
        dropped: Whether the packets were dropped.
        pattern: The text after its header; a group `count` has the number it says, else it is one.
        meaning: What it proves, and what it does not.
        next: What to do next.
    """

    title: str
    unit: str
    dropped: bool
    pattern: re.Pattern[str]
    meaning: str
    next: str


NOTICES: Final = (
    Notice(
        title="conntrack table full",
        unit="packet",
        dropped=True,
        pattern=re.compile(
            r"(?:(?:nf|ip)_conntrack: ){1,2}(?:nf_conntrack: )?"
            r"table full(?: in netns \d{1,12})?, dropping packet"
        ),
        meaning="Conntrack had no room for another flow and dropped the packet before any rule "
        "could match it. It was not INVALID, and no rule or policy can save such packets. The "
        "kernel limits the rate of these lines, so there may have been many more packets.",
        next="Compare net.netfilter.nf_conntrack_count with net.netfilter.nf_conntrack_max, and "
        "raise the latter or shorten timeouts. Find what opens so many flows: conntrack -L. The "
        "column drop of conntrack -S has every such packet.",
    ),
    Notice(
        title="expectation table full",
        unit="line",
        dropped=False,
        pattern=re.compile(r"(?:nf_conntrack: ){1,2}expectation table full"),
        meaning="A helper, such as that of FTP or SIP, could not announce a connection, which is "
        "then NEW instead of RELATED. The line says nothing about INVALID packets.",
        next="Raise net.netfilter.nf_conntrack_expect_max, or find the host that opens so many: "
        "conntrack -L expect.",
    ),
    Notice(
        title="queue full",
        unit="line",
        dropped=True,
        pattern=re.compile(
            r"(?:nfnetlink_queue: )?nf_queue: full at \d{1,10} entries, dropping packets?\(?s?\)?"
        ),
        meaning="A program that judges packets in NFQUEUE was slower than they came, and the kernel"
        " dropped some. The line does not say which queue it was, which packets or how many: the "
        "kernel limits the rate of these lines.",
        next="/proc/net/netfilter/nfnetlink_queue counts them by queue, and names the port of the "
        "program. Of nfq-guard, nfq-guard status has the same count.",
    ),
    Notice(
        title="lines left out by the kernel",
        unit="line",
        dropped=False,
        pattern=re.compile(_LIMITED + r": (?P<count>\d{1,10}) callbacks suppressed"),
        meaning="The kernel left out lines because they came too fast. Some of them may have been "
        "about packets, so each count above may be too low.",
        next="Counters leave out none: conntrack -S, and iptables -nvxL or nft list ruleset "
        "for those of rules.",
    ),
    Notice(
        title="lines lost by the log",
        unit="line",
        dropped=False,
        pattern=re.compile(
            r"(?:(?:systemd-)?journald\[\d{1,10}\]: )?"
            r"(?:(?:\*\*|Missed) (?P<count>\d{1,10}) (?:printk messages dropped|kernel messages)"
            r"|/dev/kmsg buffer overrun, some messages lost)"
        ),
        meaning="The kernel wrote faster than the log was read, and lines are lost. Some of them "
        "may have been about packets, so each count above may be too low.",
        next="Limit the rate of LOG rules (-m limit, or limit rate in nftables), or enlarge the "
        "kernel's buffer (log_buf_len). Counters lose none: conntrack -S.",
    ),
)


@final
class Noticed:
    """The lines of one kind.

    Attributes:
        count: How many packets or lines they say.
        text: The text of the first.
        first_line: Its line.
        last_line: Line of the last.
        last_count: How many the last says, once.
    """

    def __init__(self, text: str, line: int) -> None:
        """A kind whose first line is `line`; nothing is counted yet."""
        self.count = 0
        self.text = text
        self.first_line = line
        self.last_line = line
        self.last_count = 1


def notice_at(text: str, start: int) -> tuple[Notice, re.Match[str]] | None:
    """The notice that a line holds behind its header, which ends at `start`."""
    for notice in NOTICES:
        found = notice.pattern.match(text, start)
        if found is not None:
            return notice, found
    return None
