# SPDX-License-Identifier: MIT
"""Summarises a replay."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, TypedDict, final

from nfq_guard.capture.frame import own_number
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.finding import Reason
from nfq_guard.names import packet_ends, tuple_ends
from nfq_guard.policy.decision import Action
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.stream import Doubt
from nfq_guard.replay.words import UNMODELLED, direction_text
from nfq_guard.wire.packet import Packet, tuple_of

# Bounds the flows with INVALID packets that are counted by name, because each packet of a scan is a
# flow of its own. Further flows are counted together as `OTHER_FLOWS`.
_MOST_FLOWS: Final = 10_000
OTHER_FLOWS: Final = "others"


def flow_name(outcome: Outcome) -> str:
    """The flow of an INVALID packet, by its original direction if that is known."""
    packet = outcome.packet
    if outcome.snapshot is not None:
        return tuple_ends(outcome.snapshot.original)
    if packet is None:
        return OTHER_FLOWS
    wanted = tuple_of(packet) if isinstance(packet, Packet) else None
    return packet_ends(packet) if wanted is None else tuple_ends(wanted)


class OutsideRecord(TypedDict):
    """A segment outside any window under an assumed scale.

    Attributes:
        frame: Its frame.
        flow: Its direction, as `source > destination`.
        distance: Bytes between the end of its stream and its first one.
    """

    frame: int
    flow: str
    distance: int


class UntranslatedRecord(TypedDict):
    """A packet with the untranslated address of an end of a live flow.

    Attributes:
        frame: Its frame.
        flow: Its direction, as `source > destination`.
        of: The flow that it belongs to by its acknowledgement number, by the direction of its first
            packet.
    """

    frame: int
    flow: str
    of: str


class SummaryRecord(TypedDict):
    """A whole replay, as `replay --summary` prints it.

    Attributes:
        frames: Frames of the captures.
        packets: Packets that conntrack would see.
        flows: Flows that were created.
        kernel: The kernel whose rules were used.
        kernel_doubt: Why the requested kernel may follow other rules; null if it follows these.
        span_s: Time from the earliest frame to the latest, in seconds.
        seconds: Duration of the replay.
        ctstate: Packets by ctstate.
        ignored: Packets that left their flow unchanged.
        without_packet: Frames without a packet for conntrack, by reason.
        disordered: Frames that are older than the frame before them.
        drops: Frames that the capture itself reports as dropped.
        tunnels: Packets that carry another packet, by the name of the tunnel.
        copies: Frames that show an earlier packet again; they are not judged.
        translations: Flows whose address translation the capture shows.
        untranslated: Packets that escaped the translation of their flow.
        unmodelled: Packets of protocols that some kernels follow with trackers of their own, which
            the replay does not model, by protocol.
        one_way: Flows of which the capture has only one end, although the other end answered.
        cut_options: TCP segments whose options were not captured completely.
        cut_openings: SYNs among these. The window scale of their flows is unknown, so no window is
            checked.
        checksums: Wrong transport checksums: `forgiven`, `broken` and `unknown`; `unanswered` are
            those of `unknown` that belong to unanswered SYNs with an unfinished checksum.
        began_before: Flows whose beginning is not in the capture.
        outside: Segments of these flows that are outside any window under an assumed scale: a host
            that saw the beginning may have called them INVALID.
        caused_resets: RSTs that answer an INVALID packet, as a host answers a stray segment.
        doubt: INVALID packets whose finding is in doubt because of the capture, by kind of doubt.
            `reason`, `action`, `rule` and `flow` do not count them.
        reason: INVALID packets by reason.
        action: INVALID packets by action.
        rule: INVALID packets by the rule that decided.
        flow: INVALID packets by flow, as `source > destination`; beyond 10,000 flows the key
            `others` has those of all further ones.
        damage: Why captures were not read to their end, for each of them.
    """

    frames: int
    packets: int
    flows: int
    kernel: str
    kernel_doubt: str | None
    span_s: float
    seconds: float
    ctstate: dict[str, int]
    ignored: int
    without_packet: dict[str, int]
    disordered: int
    drops: int
    tunnels: dict[str, int]
    copies: int
    translations: int
    untranslated: list[UntranslatedRecord]
    unmodelled: dict[str, int]
    one_way: int
    cut_options: int
    cut_openings: int
    checksums: dict[str, int]
    began_before: int
    outside: list[OutsideRecord]
    caused_resets: int
    doubt: dict[str, int]
    reason: dict[str, int]
    action: dict[str, int]
    rule: dict[str, int]
    flow: dict[str, int]
    damage: list[str]


@final
class Summary:
    """Counts INVALID packets.

    Attributes:
        by_reason: Packets by reason.
        by_action: Packets by action of the policy.
        by_rule: Packets by action and by the rule that decides.
        by_flow: Packets by flow; bounded.
        by_doubt: Packets in doubt, by kind; the other counts exclude them.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        self.by_reason: Counter[Reason] = Counter()
        self.by_action: Counter[Action] = Counter()
        self.by_rule: Counter[tuple[Action, str]] = Counter()
        self.by_flow: Counter[str] = Counter()
        self.by_doubt: Counter[Doubt] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Count an outcome if it is INVALID."""
        finding = outcome.finding
        if finding is None:
            return
        if outcome.doubted is not None:
            self.by_doubt[outcome.doubted.kind] += 1
            return
        self.by_reason[finding.reason] += 1
        if outcome.decision is not None:
            self.by_action[outcome.decision.action] += 1
            self.by_rule[outcome.decision.action, outcome.decision.rule] += 1
        name = flow_name(outcome)
        if name not in self.by_flow and len(self.by_flow) >= _MOST_FLOWS:
            name = OTHER_FLOWS
        self.by_flow[name] += 1

    def as_object(
        self,
        replayer: Replayer,
        settings: ReplaySettings,
        seconds: float,
        damage: Sequence[str] = (),
    ) -> SummaryRecord:
        """The summary as a JSON object.

        Args:
            replayer: The replayer, after its last frame.
            settings: Its settings.
            seconds: Duration of the replay.
            damage: As in the record.
        """
        return {
            "frames": replayer.frames,
            "packets": replayer.packets,
            "flows": replayer.table.created,
            "kernel": settings.kernel.name,
            "kernel_doubt": settings.kernel_doubt or None,
            "span_s": round(replayer.reader.span_s, 6),
            "seconds": round(seconds, 3),
            "ctstate": {
                state.value: count
                for state, count in zip(CTSTATES, replayer.by_ctstate, strict=True)
            },
            "ignored": replayer.ignored,
            "without_packet": dict(replayer.reader.without_packet),
            "disordered": replayer.reader.disordered,
            "drops": replayer.drops,
            "tunnels": dict(replayer.reader.tunnels),
            "copies": replayer.copies.copies,
            "translations": replayer.translations,
            "untranslated": [
                {
                    "frame": own_number(one.frame),
                    "flow": direction_text(one.key),
                    "of": direction_text(one.of.original),
                }
                for one in replayer.streams.escapes.found
            ],
            "unmodelled": {
                UNMODELLED[proto].name: count for proto, count in replayer.unmodelled.items()
            },
            "one_way": replayer.streams.one_way(),
            "cut_options": replayer.cut_options,
            "cut_openings": replayer.streams.cut_openings,
            "checksums": {
                "forgiven": replayer.reader.checksums.forgiven,
                "broken": replayer.reader.checksums.broken,
                "unknown": replayer.reader.checksums.unknown,
                "unanswered": replayer.reader.checksums.unanswered,
            },
            "began_before": len(replayer.streams.began_before),
            "outside": [
                {
                    "frame": own_number(segment.frame),
                    "flow": segment.flow,
                    "distance": segment.distance,
                }
                for segment in outside(replayer.streams.began_before)
            ],
            "caused_resets": replayer.caused_resets,
            "doubt": {kind.value: n for kind, n in self.by_doubt.most_common()},
            "reason": {reason.value: n for reason, n in self.by_reason.most_common()},
            "action": {action.value: n for action, n in self.by_action.most_common()},
            "rule": {rule: n for (_, rule), n in self.by_rule.most_common()},
            "flow": dict(self.by_flow.most_common()),
            "damage": list(damage),
        }
