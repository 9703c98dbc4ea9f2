# SPDX-License-Identifier: MIT
"""SCTP associations as a capture shows them: which tags each end used, and when.

An end uses one verification tag from its handshake on. If conntrack calls a packet INVALID because
of its tag, the handshake that the tag is of may be missing in the file or out of order. That is
disproved if its sender goes on with the tag that conntrack knew.

Where an end uses a tag that another association announced, both are one that is translated, and the
file has each direction with another tuple.
"""

from typing import Final, final

from nfq_guard import flow
from nfq_guard.conntrack.table import CT_INVALID
from nfq_guard.finding import Reason
from nfq_guard.replay.streams import REORDER_FRAMES
from nfq_guard.wire.packet import Packet, SctpPacket, flow_key
from nfq_guard.wire.sctp import COOKIE_ACK, DATA, INIT, INIT_ACK, SACK, SHUTDOWN

# Chunks of an established association, whose packet has the tag of its direction.
_ORDINARY: Final = frozenset({DATA, SACK, SHUTDOWN, COOKIE_ACK})
# Chunks that announce the tag of the packets that answer.
_ANNOUNCING: Final = frozenset({INIT, INIT_ACK})
# A host that never sees one end lacks more than one packet of it.
_ONE_WAY_FROM: Final = 3
# Tags of one direction whose use is remembered; the one that was first used is forgotten.
_MOST_TAGS: Final = 16


@final
class Association:
    """What the capture shows of one association, or of several between the same ports.

    Attributes:
        opened: Whether the INIT that created its conntrack entry is in the file.
        packets: Number of its packets.
        both_ways: Whether both ends sent packets.
        half: Whether its other direction has another tuple.
    """

    def __init__(self, src: bytes) -> None:
        """An association of which `src` sent the first packet."""
        self.opened = False
        self.packets = 0
        self.both_ways = False
        self.half = False
        self._first = src
        # By direction, the tags that conntrack knows, and those before them.
        self._tags = (0, 0)
        self._earlier = (0, 0)
        # By direction, position of the packet that changed the tag.
        self._changed = (0, 0)
        # By direction, each tag with the position of the last ordinary packet that had it.
        self._used: tuple[dict[int, int], dict[int, int]] = ({}, {})
        # The state that conntrack's entry has; another one belongs to another entry.
        self._state: flow.Association | None = None

    def take(
        self, packet: Packet, sctp: SctpPacket, code: int, state: flow.Association | None, way: int
    ) -> None:
        """Take a packet into account; as for `Associations.take`, `way` being its direction."""
        self.packets += 1
        self.both_ways = self.both_ways or packet.src != self._first
        if state is None:
            return
        kinds = {chunk.type for chunk in sctp.chunks}
        if state is not self._state:
            self._state = state
            self.opened = INIT in kinds
        if code != CT_INVALID and not kinds.isdisjoint(_ORDINARY) and sctp.tag == self._tags[way]:
            used = self._used[way]
            used.pop(sctp.tag, None)
            used[sctp.tag] = self.packets
            if len(used) > _MOST_TAGS:
                del used[next(iter(used))]
        tags = (state.tag_original, state.tag_reply)
        for direction in (0, 1):
            if tags[direction] != self._tags[direction]:
                self._earlier = _with(self._earlier, direction, self._tags[direction])
                self._changed = _with(self._changed, direction, self.packets)
        self._tags = tags

    def claim(self, sctp: SctpPacket, reason: Reason, way: int) -> "Claim":
        """What the INVALID packet that was taken last claims of the association."""
        tag = sctp.tag
        chunk = sctp.chunks[0] if sctp.chunks else None
        if chunk is not None and chunk.type == INIT_ACK and tag == self._tags[way]:
            # The tag that it announces for the other direction is another one than that known.
            way, tag = 1 - way, chunk.initiate_tag
        late = tag == self._earlier[way] and self.packets - self._changed[way] <= REORDER_FRAMES
        known = self._tags[way]
        if reason is Reason.NO_ENTRY:
            # An entry that has ended knew the tags of both directions.
            proven = self.opened and tag in self._tags
        else:
            proven = reason is not Reason.BAD_TAG
        alone = reason is Reason.BAD_TAG and chunk is not None and chunk.type == INIT
        return Claim(self, way, known, self.packets, late, proven, alone)

    def went_on(self, way: int, tag: int, since: int) -> bool:
        """Whether an end used `tag` after position `since`."""
        return self._used[way].get(tag, 0) > since

    @property
    def one_way(self) -> bool:
        """Whether the host does not see one of its ends."""
        return not self.both_ways and self.packets >= _ONE_WAY_FROM


@final
class Claim:
    """An INVALID packet of an association, until later frames decide.

    Attributes:
        association: The association.
        opened: Whether the file held its beginning up to the packet.
    """

    def __init__(
        self,
        association: Association,
        way: int,
        known: int,
        index: int,
        late: bool,  # noqa: FBT001 - positional, as on the packet path
        proven: bool,  # noqa: FBT001 - as above
        alone: bool,  # noqa: FBT001 - as above
    ) -> None:
        """Keep what `stands` depends on; `alone`: an INIT with a tag, which no state permits."""
        self.association = association
        self.opened = association.opened
        self._way = way
        self._known = known
        self._index = index
        self._late = late
        self._proven = proven
        self._alone = alone

    @property
    def stands(self) -> bool:
        """Whether no missing or late handshake explains the finding."""
        association = self.association
        if self._alone:
            return True
        if not self.opened or association.half:
            return False
        return (
            self._proven
            or association.one_way
            or (not self._late and association.went_on(self._way, self._known, self._index))
        )


@final
class Associations:
    """The associations of a capture; all are forgotten together when there are too many."""

    def __init__(self, capacity: int) -> None:
        """Hold at most `capacity` associations."""
        self._known: dict[flow.FlowKey, Association] = {}
        # By the tags that one of its ends announced.
        self._announced: dict[int, Association] = {}
        self._capacity = capacity

    def take(
        self,
        packet: Packet,
        sctp: SctpPacket,
        code: int,
        state: flow.Association | None,
        direction: int,
    ) -> None:
        """Take a packet into account.

        Args:
            packet: The packet.
            sctp: Its SCTP header and chunks.
            code: Its ctstate, a code of `conntrack.table`.
            state: Conntrack's state of its association after it; None without an entry.
            direction: Its direction there.
        """
        known = self._known
        key = flow_key(packet)
        association = known.get(key)
        if association is None:
            if len(known) >= self._capacity:
                known.clear()
                self._announced.clear()
            association = known[key] = Association(packet.src)
        association.take(packet, sctp, code, state, direction)
        for chunk in sctp.chunks:
            if chunk.type in _ANNOUNCING:
                if len(self._announced) >= self._capacity:
                    self._announced.clear()
                self._announced.setdefault(chunk.initiate_tag, association)
        other = self._announced.get(sctp.tag, association)
        if other is not association and not (other.both_ways or association.both_ways):
            other.half = association.half = True

    def of(self, packet: Packet) -> Association:
        """The association of the packet that was taken last."""
        return self._known[flow_key(packet)]


def _with(pair: tuple[int, int], place: int, value: int) -> tuple[int, int]:
    """`pair` with another value at `place`."""
    return (pair[0], value) if place else (value, pair[1])
