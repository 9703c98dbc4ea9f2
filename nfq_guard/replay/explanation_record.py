# SPDX-License-Identifier: MIT
"""A explanation as a JSON object."""

from nfq_guard.flow import FlowSnapshot, Peer
from nfq_guard.names import direction, tuple_ends
from nfq_guard.replay.bounds import BoundCheck, Point
from nfq_guard.replay.explanation import Explanation
from nfq_guard.replay.frame_record import breach_object, record
from nfq_guard.replay.replayer import Outcome
from nfq_guard.replay.words import finding_sentence, state_name


def explanation_object(explanation: Explanation) -> dict[str, object]:
    """The record of the frame as `replay` has it, and what `explain` adds."""
    told = (*explanation.first, *explanation.last)
    return record(explanation.outcome, (explanation.file,)) | {
        "file": explanation.file,
        "kernel": explanation.kernel.name,
        "flow": None if explanation.before is None else _flow(explanation.before),
        "expired_s": round(explanation.expired_s, 6) or None,
        "history": [record(outcome, (explanation.file,)) for outcome in told],
        "history_left_out": explanation.between,
        "bounds": [_bound(check, explanation) for check in explanation.checks],
        "kernels": [_generation(name, outcome) for name, outcome in explanation.others],
    }


def _flow(before: FlowSnapshot) -> dict[str, object]:
    original, reply = before.peers or (None, None)
    return {
        "original": tuple_ends(before.original),
        "direction": direction(before.direction),
        "state": state_name(before.state),
        "status": before.status,
        "timeout_s": before.timeout_s,
        "peers": {"original": _peer(original), "reply": _peer(reply)},
    }


def _peer(peer: Peer | None) -> dict[str, object] | None:
    if peer is None:
        return None
    return {
        "td_end": peer.td_end,
        "td_maxend": peer.td_maxend,
        "td_maxwin": peer.td_maxwin,
        "td_maxack": peer.td_maxack,
        "td_scale": peer.td_scale,
        "flags": peer.flags,
    }


def _point(point: Point, explanation: Explanation) -> dict[str, object]:
    return {
        "name": point.name,
        "seq": point.seq,
        "relative": explanation.relative(point.seq, point.side),
    }


def _bound(check: BoundCheck, explanation: Explanation) -> dict[str, object]:
    return {
        "bound": check.bound,
        "actual": _point(check.actual, explanation),
        "limit": _point(check.limit, explanation),
        "holds": check.holds,
        "distance": max(0, -check.room),
        "room": max(0, check.room),
    }


def _generation(name: str, outcome: Outcome) -> dict[str, object]:
    finding = outcome.finding
    return {
        "kernel": name,
        "ctstate": outcome.ctstate,
        "ignored": outcome.ignored is not None,
        "reason": None if finding is None else finding.reason,
        "breach": None if finding is None else breach_object(finding.breach),
        "says": None if finding is None else finding_sentence(finding) or None,
    }
