# SPDX-License-Identifier: MIT
"""The TCP streams that a replay lists, in order of their beginning."""

from typing import Final, final

from nfq_guard.replay.stream import Stream

# Maximum number of listed streams.
MOST_LISTED: Final = 10_000


@final
class Listing:
    """The first streams.

    Attributes:
        streams: The streams.
        others: Number of further streams, which are not listed.
    """

    def __init__(self) -> None:
        """Start with an empty list."""
        self.streams: list[Stream] = []
        self.others = 0

    def take(self, stream: Stream) -> None:
        """Add a new stream unless the list is full."""
        if len(self.streams) < MOST_LISTED:
            self.streams.append(stream)
            stream.listed = True
        else:
            self.others += 1

    def drop(self, stream: Stream) -> None:
        """Remove a stream that turned out to be a part of another."""
        self.streams = [one for one in self.streams if one is not stream]
