# SPDX-License-Identifier: MIT
"""INVALID packets of a capture as events, for the page and for hints."""

from datetime import UTC, datetime
from typing import Final

from nfq_guard.capture.frame import own_number
from nfq_guard.engine import VERDICT_ACCEPT, Judgment, Mode
from nfq_guard.flow import Evidence, Hook
from nfq_guard.replay.outcome import Outcome
from nfq_guard.telemetry.events import AnsweredPacket, timestamp
from nfq_guard.telemetry.packet_event import packet_judged
from nfq_guard.telemetry.reader import ReadEvent
from nfq_guard.wire.packet import Queued

_QUEUED: Final = Queued(b"", int(Hook.PREROUTING), "", "", 0, 0)
# A damaged file may contain any time. Dates after this one, in the year 2261, overflow elsewhere.
_LATEST_S: Final = 9_183_000_000


def page_event(outcome: Outcome) -> ReadEvent | None:
    """The event of an outcome, as a daemon in dry-run would have written it.

    None if the packet is not INVALID or its finding is in doubt.
    """
    packet = outcome.packet
    finding = outcome.finding
    decision = outcome.decision
    if packet is None or finding is None or decision is None or outcome.doubted is not None:
        return None
    seconds = min(max(0.0, outcome.frame.time_ns / 1_000_000_000), _LATEST_S)
    cause = outcome.cause
    answered = None
    if cause is not None:
        delay_s = max(0.0, outcome.now - cause.at)
        at = timestamp(max(0.0, seconds - delay_s))
        answered = AnsweredPacket(at, cause.reason, cause.rule, round(delay_s * 1_000_000))
    event = packet_judged(
        Judgment(_QUEUED, packet, outcome.snapshot, finding, decision, VERDICT_ACCEPT),
        mode=Mode.DRY_RUN,
        queue_num=0,
        evidence=Evidence.REPLAY,
        when=timestamp(seconds),
        caused_by=answered,
    )
    when = datetime.fromtimestamp(seconds, UTC)
    return ReadEvent(own_number(outcome.frame.number), when, when, event)
