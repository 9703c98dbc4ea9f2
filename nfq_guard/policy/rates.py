# SPDX-License-Identifier: MIT
"""Rate limits: packets counted per flow, per source or per segment, in bounded memory."""

from typing import Final, final

from nfq_guard.flow import FlowKey
from nfq_guard.policy.model import Rate, RateKey
from nfq_guard.wire.packet import ACK, FIN, RST, SYN, Malformed, Packet, Segment, flow_key

# Maximum number of keys of one rule, and of all rules of a policy: a key takes 180 bytes. A sender
# with forged addresses can fill the table; the least recently seen key is evicted, and starts anew
# when it returns.
MOST_KEYS: Final = 4096
MOST_KEYS_IN_ALL: Final = 65_536

# The flags that all copies of a segment share; a retransmission may change others.
_SAME_FLAGS: Final = SYN | ACK | FIN | RST
# A segment with its flow: source and destination, ports, `seq`, `ack`, `end`, and flags.
_SegmentKey = tuple[bytes, bytes, int, int, int, int, int, int]


@final
class _Window:
    """The packets of one key since `start`, monotonic seconds."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.count = 0


@final
class RateLimit:
    """Counts packets by key and decides whether a rule with this rate matches.

    A window begins with the first packet of a key and ends `in_s` later, so up to twice the limit
    may pass within `in_s` across the end of a window.
    """

    def __init__(self, rate: Rate, most_keys: int = MOST_KEYS) -> None:
        """Start with empty counts for at most `most_keys` keys."""
        self._over = rate.over
        self._in_s = rate.in_s
        self._by = rate.by
        self._negated = rate.negated
        self._most_keys = most_keys
        self._windows: dict[FlowKey | _SegmentKey | bytes, _Window] = {}

    def matches(self, packet: Packet | Malformed, now: float) -> bool:
        """Count `packet` at `now`, monotonic seconds; returns whether the rule matches it."""
        window = self._window(packet, now)
        window.count += 1
        return (window.count > self._over) is not self._negated

    def matches_of(self, packet: Packet | Malformed, now: float, count: int) -> int:
        """Count `count` packets like `packet` at once; returns how many the rule matches."""
        window = self._window(packet, now)
        window.count += count
        beyond = max(0, min(count, window.count - self._over))
        return count - beyond if self._negated else beyond

    def _window(self, packet: Packet | Malformed, now: float) -> _Window:
        key: FlowKey | _SegmentKey | bytes
        if self._by is RateKey.SOURCE:
            key = bytes(packet.src)
        elif self._by is RateKey.SEGMENT:
            key = _segment_key(packet)
        else:
            key = flow_key(packet)
        window = self._windows.pop(key, None)
        if window is None:
            if len(self._windows) >= self._most_keys:
                del self._windows[next(iter(self._windows))]
            window = _Window(now)
        elif not 0 <= now - window.start < self._in_s:
            window.start = now
            window.count = 0
        # The most recently seen key is at the end.
        self._windows[key] = window
        return window


def _segment_key(packet: Packet | Malformed) -> FlowKey | _SegmentKey:
    """A key shared by all copies of a TCP segment; for other packets, that of the flow."""
    l4 = packet.l4 if isinstance(packet, Packet) else None
    if not isinstance(l4, Segment):
        return flow_key(packet)
    return (
        packet.src,
        packet.dst,
        l4.sport,
        l4.dport,
        l4.seq,
        l4.ack,
        l4.end,
        l4.flags & _SAME_FLAGS,
    )
