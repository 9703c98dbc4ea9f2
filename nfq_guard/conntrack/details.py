# SPDX-License-Identifier: MIT
"""The phrases of `Finding.detail`, composed once, and the groups of them that share a cause."""

from typing import Final

from nfq_guard.conntrack.sctp_states import CHUNK_NAMES
from nfq_guard.conntrack.states import CLASS_ACK, CLASS_FIN, CLASS_NAMES, CLASS_SYN, CLASS_SYNACK
from nfq_guard.finding import BOUNDS
from nfq_guard.flow import SctpState, TcpState

_DIRECTIONS: Final = ("original", "reply")
# Reading a name anew for each of the 4,000 phrases takes most of the time of loading them.
_TCP_STATES: Final = tuple(state.name for state in TcpState)
_SCTP_STATES: Final = tuple(state.name for state in SctpState)

# TRANSITIONS[direction][class][state] and SCTP_TRANSITIONS[direction][type of chunk][state].
TRANSITIONS: Final = tuple(
    tuple(tuple(f"{direction} {name} in {state}" for state in _TCP_STATES) for name in CLASS_NAMES)
    for direction in _DIRECTIONS
)
SCTP_TRANSITIONS: Final = tuple(
    tuple(tuple(f"{direction} {name} in {state}" for state in _SCTP_STATES) for name in CHUNK_NAMES)
    for direction in _DIRECTIONS
)
# By class of segment, and by type of chunk.
WITHOUT_ENTRY: Final = tuple(f"{name} without an entry" for name in CLASS_NAMES)
SCTP_WITHOUT_ENTRY: Final = tuple(f"{name} without an entry" for name in CHUNK_NAMES)

# Details of an RST that breaks two bounds, by the second one.
AFTER_A_SYN: Final = {
    bound: f"or {bound.value}, if the segment before it was a SYN that conntrack ignored"
    for bound in BOUNDS
}

# Of `unsupported`, where evidence is missing.
NO_LOOKUP: Final = "no way to look the flow up"
NO_WINDOW: Final = "the flow is known, its window is not"
NO_STATE: Final = "the flow is known, its state is not"
NOT_LOGGED: Final = "the flow is known; the kernel's log of the packet was not found"
NOT_ALL_CHUNKS: Final = "not all of its chunks were captured"
NO_TRANSPORT: Final = "fragment without a transport header"
NO_DIAGNOSIS: Final = "protocol without a diagnosis"
OTHER_ADDRESSES: Final = (
    "conntrack took the checksum with other addresses than the receiver, which the extension "
    "headers name"
)
# Of `unsupported`, `ack-over` and `ack-under`.
SHIFTED: Final = "conntrack compared another number: a helper shifts those of the flow"
# Of `raced`.
ENTRY_GONE: Final = "entry gone since, in another zone, or the rule runs before conntrack"
STATE_MOVED_ON: Final = "fits the current state of the flow"
MOVED_ON: Final = "fits the current window of the flow"
# Of `bad-checksum`.
UNCHECKED: Final = "not copied whole; the kernel verified it, and did not find it right"
# Of `no-entry` and `icmp-unrelated`, by the kernel's log.
ONLY_SILENT: Final = "the only reason that the kernel does not log"
# Of ICMP messages.
FAR_REDIRECT: Final = "redirect from a router that is not on the link"
SHORT_QUOTE: Final = "quotes too little of a packet"
QUOTES_NO_ENTRY: Final = "quotes a flow without an entry"
QUOTES_ENTRY: Final = "quotes a flow that has an entry by now"
QUOTES_OTHER_SENDER: Final = "quotes a packet of another sender"
ICMP_TYPE_ABOVE: Final = "ICMP type above 18"
NOT_REQUESTED: Final = "ICMP message that no request asked for"
# Of SCTP packets.
OTHER_TAG: Final = "verification tag of another association"
OTHER_INIT: Final = "answers an INIT that was not seen"
NO_CHUNK: Final = "no chunk"
INIT_CUT: Final = "INIT chunk cut short"
EMPTY_CHUNK: Final = "chunk of length 0"
NOT_ALONE: Final = "a chunk that must be alone is not"
NOT_FIRST: Final = "a chunk that must come first does not"

# An answer to a SYN that conntrack has not seen.
ANSWERS_UNSEEN_SYN: Final = frozenset({WITHOUT_ENTRY[CLASS_SYNACK]})
# The opener goes on although conntrack has not seen an answer.
GOES_ON_UNANSWERED: Final = frozenset(
    TRANSITIONS[0][kind][state]
    for kind in (CLASS_ACK, CLASS_FIN)
    for state in (TcpState.SYN_SENT, TcpState.SYN_SENT2)
)
# The other end opens a connection while the entry of an older one is left.
OPENS_FROM_OTHER_END: Final = frozenset(TRANSITIONS[1][CLASS_SYN])
# The opener of the known flow answers a SYN, which therefore belongs to another connection.
ANSWERS_OTHER_SYN: Final = frozenset(TRANSITIONS[0][CLASS_SYNACK])
# A heartbeat opened the association, and the chunk does not answer it.
AFTER_HEARTBEAT: Final = frozenset(
    states[SctpState.HEARTBEAT_SENT] for chunks in SCTP_TRANSITIONS for states in chunks
)
