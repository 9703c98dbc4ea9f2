# SPDX-License-Identifier: MIT
"""What a whole replay came to."""

from collections import Counter
from typing import Final, TypedDict, final

from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.finding import Reason
from nfq_guard.names import packet_ends, tuple_ends
from nfq_guard.policy.decision import Action
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.stream import Doubt
from nfq_guard.replay.words import direction_text
from nfq_guard.wire.packet import Packet, tuple_of

# Flows with INVALID packets that are counted by name. A scan makes each packet a flow of its own;
# from here on they are counted together as `OTHER_FLOWS`.
_MOST_FLOWS: Final = 10_000
OTHER_FLOWS: Final = "others"


def flow_name(outcome: Outcome) -> str:
    """The flow of an INVALID packet, as its original direction goes where that is known."""
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
        of: The flow that it belongs to by its acknowledgement, as its first packet goes.
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
        kernel_doubt: Why those are a guess at the kernel that was asked for; null if they are not.
        span_s: Time of capture from the first frame to the last, in seconds.
        seconds: How long the replay took.
        ctstate: Packets by ctstate.
        ignored: Packets that left their flow as it was.
        without_packet: Frames without a packet for conntrack, by why.
        disordered: Frames with a time before that of the frame before them.
        drops: Frames that the capture itself reports as dropped.
        tunnels: Packets that carry another packet, by the name of the tunnel.
        copies: Frames that show an earlier packet again; they are not judged.
        translations: Flows whose address translation the capture shows.
        untranslated: Packets that escaped the translation of their flow.
        one_way: Flows of which one end alone is in the capture, although the other answered.
        cut_options: TCP segments in whose options the capture ends, so that some are unknown.
        cut_openings: SYNs among them: flows whose window scale is unknown are held to no window.
        checksums: Wrong transport checksums: `forgiven`, `broken` and `unknown`; `unanswered` are
            those of the unknown that are unfinished and of SYNs without an answer.
        began_before: Flows whose beginning is not in the capture.
        outside: Segments of those that are outside any window under an assumed scale: the host
            that saw the beginning may have called them INVALID.
        caused_resets: RSTs that answer an INVALID packet, as a host answers a stray segment.
        doubt: INVALID packets that are in doubt because of the capture, by why. `reason`, `action`,
            `rule` and `flow` do not count them.
        reason: INVALID packets by reason.
        action: INVALID packets by action.
        rule: INVALID packets by the rule that decided.
        flow: INVALID packets by flow, as `source > destination`.
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


@final
class Summary:
    """Counts INVALID packets as they come.

    Attributes:
        by_reason: How many, by reason.
        by_action: How many, by action of the policy.
        by_rule: How many, by action and by the rule that decides.
        by_flow: How many, by flow; bounded.
        by_doubt: How many are in doubt, by why; the other counts leave them out.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self.by_reason: Counter[Reason] = Counter()
        self.by_action: Counter[Action] = Counter()
        self.by_rule: Counter[tuple[Action, str]] = Counter()
        self.by_flow: Counter[str] = Counter()
        self.by_doubt: Counter[Doubt] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Count an outcome; one that is not INVALID counts nowhere here."""
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
        self, replayer: Replayer, settings: ReplaySettings, seconds: float
    ) -> SummaryRecord:
        """For programs: everything, one object.

        Args:
            replayer: After its last frame.
            settings: What it was made with.
            seconds: How long it took.
        """
        return {
            "frames": replayer.frames,
            "packets": replayer.packets,
            "flows": replayer.table.created,
            "kernel": settings.kernel.name,
            "kernel_doubt": settings.kernel_doubt or None,
            "span_s": round(replayer.now, 6),
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
                    "frame": one.frame,
                    "flow": direction_text(one.key),
                    "of": direction_text(one.of.original),
                }
                for one in replayer.streams.escapes.found
            ],
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
                    "frame": segment.frame,
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
        }
