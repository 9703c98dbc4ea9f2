# SPDX-License-Identifier: MIT
"""Formats an explanation as text of at most 100 columns.

Sequence numbers are relative to the first one of each side, as in Wireshark; the absolute number
follows in parentheses.
"""

from datetime import UTC, datetime
from typing import Final, final

from nfq_guard.cli.ladder_text import ladder
from nfq_guard.cli.replay_text import kernel_words
from nfq_guard.cli.terminal import styled
from nfq_guard.conntrack.bounds import BoundCheck, Point
from nfq_guard.finding import Reason
from nfq_guard.flow import (
    IP_CT_TCP_FLAG_BE_LIBERAL,
    IP_CT_TCP_FLAG_CLOSE_INIT,
    IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED,
    IP_CT_TCP_FLAG_MAXACK_SET,
    IP_CT_TCP_FLAG_SACK_PERM,
    IP_CT_TCP_FLAG_WINDOW_SCALE,
    IPS_ASSURED,
    IPS_DST_NAT,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
    FlowSnapshot,
    Peer,
)
from nfq_guard.glossary import BOUND_WORDS, explained, finding_sentence
from nfq_guard.names import address, bytes_of, endpoint, packet_ends, protocol
from nfq_guard.policy.decision import Action
from nfq_guard.replay.explanation import Explanation
from nfq_guard.replay.number_line import ACTUAL, LIMIT, OTHER, Mark, draw
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.page_events import page_event
from nfq_guard.replay.why_passed import WHY_ABSENT, why_passed
from nfq_guard.replay.words import (
    UNTRANSLATED,
    association_words,
    direction_text,
    doubt_sentence,
    flag_letters,
    gist,
    gist_of,
    state_name,
)
from nfq_guard.report.hints import hints_of
from nfq_guard.seqno import Seq, distance
from nfq_guard.telemetry.palette import ACTION_STYLES, CTSTATE_STYLES, Style
from nfq_guard.wire.packet import ACK, Segment
from nfq_guard.wire.tcp import parse_options

_WIDTH: Final = 78
_LEAST_DRAWN: Final = 40
_INDENT: Final = "    "
_VERDICT_COLUMN: Final = 58
_PEER_FLAGS: Final = (
    (IP_CT_TCP_FLAG_WINDOW_SCALE, "scales"),
    (IP_CT_TCP_FLAG_SACK_PERM, "sack"),
    (IP_CT_TCP_FLAG_CLOSE_INIT, "closed first"),
    (IP_CT_TCP_FLAG_BE_LIBERAL, "liberal"),
    (IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED, "data unacknowledged"),
)
_ACTIONS: Final = {
    Action.DROP: "the packet is dropped, and TCP retransmits lost data",
    Action.LOG: "the packet passes and is recorded",
    Action.ALLOW: "the packet passes and is counted",
    Action.HEAL: "the packet is dropped, and its retransmission passes: conntrack no longer checks "
    "the window of its sender in this flow",
}


def explanation_text(explanation: Explanation, *, colour: bool, columns: int | None = None) -> str:
    """The whole explanation, with a newline after each line.

    Args:
        explanation: The explanation.
        colour: Whether it is coloured.
        columns: Width of the terminal, which bounds the number lines; None for none.
    """
    return "\n".join(_Telling(explanation, colour=colour, columns=columns).lines()) + "\n"


@final
class _Telling:
    def __init__(self, explanation: Explanation, *, colour: bool, columns: int | None) -> None:
        self._explanation = explanation
        self._colour = colour
        self._columns = columns
        room = _WIDTH if columns is None else columns - len(_INDENT)
        self._text_width = max(1, min(_WIDTH, room))
        self._drawn_width = max(_LEAST_DRAWN, min(_WIDTH, room))

    def lines(self) -> list[str]:
        explanation = self._explanation
        lines = [*self._title(), ""]
        if explanation.outcome.packet is None:
            return lines + self._wrapped(WHY_ABSENT[explanation.outcome.absent])
        if explanation.outcome.doubted is not None:
            doubt = f"The finding is in doubt: {doubt_sentence(explanation.outcome.doubted)}."
            lines += [self._heading("The capture"), *self._wrapped(doubt), ""]
        lines += [self._heading("The packet"), *self._packet(), ""]
        lines += [self._heading("Its flow in the whole capture"), *self._flow(), ""]
        if explanation.before is not None and explanation.before.peers is not None:
            lines += [
                self._heading("What conntrack knew of each side before it"),
                *self._window(),
                "",
            ]
        if explanation.checks:
            lines += [self._heading("The check"), *self._checks(), ""]
        lines += [self._heading("So"), *self._verdict(), ""]
        hints = hints_of(filter(None, map(page_event, explanation.life.invalid)))
        if hints:
            lines += [self._heading("Possible causes, by all INVALID packets of the flow")]
            lines += [*(line for hint in hints for line in self._wrapped(hint.text)), ""]
        lines += [self._heading("Under other kernels"), *self._kernels()]
        if explanation.outcome.decision is not None:
            lines += ["", self._heading("What the policy does"), *self._policy()]
        return lines

    def _styled(self, text: str, *styles: Style) -> str:
        return styled(text, *styles) if self._colour else text

    def _wrapped(self, text: str) -> list[str]:
        lines: list[str] = []
        line = ""
        for word in text.split():
            if line and len(line) + 1 + len(word) > self._text_width:
                lines.append(_INDENT + line)
                line = word
            else:
                line = f"{line} {word}".strip()
        return [*lines, _INDENT + line] if line else lines

    def _heading(self, text: str) -> str:
        return self._styled(text, Style.BOLD)

    def _title(self) -> list[str]:
        explanation = self._explanation
        outcome = explanation.outcome
        when = datetime.fromtimestamp(outcome.frame.time_ns // 10**9, UTC)
        fraction = outcome.frame.time_ns % 10**9
        side = "before" if outcome.now < 0 else "after"
        since = f"{abs(outcome.now):.6f} s {side} the first frame"
        return [
            f"{self._heading(f'Frame {outcome.frame.number} of {explanation.file}')}: "
            f"{self._word(outcome)}",
            f"{_INDENT}{when:%Y-%m-%d %H:%M:%S}.{fraction:09d} UTC, {since}, "
            f"rules of kernel {kernel_words(explanation.settings)}",
        ]

    def _word(self, outcome: Outcome) -> str:
        if outcome.ctstate is None:
            return "no packet for conntrack"
        word = outcome.ctstate.value
        if outcome.finding is not None:
            word += f" {outcome.finding.reason.value}"
        if outcome.ignored is not None:
            word += " (ignored)"
        return self._styled(word, CTSTATE_STYLES[outcome.ctstate])

    def _number(self, number: Seq, side: int) -> str:
        relative = self._explanation.relative(number, side)
        return str(number) if relative is None else f"{relative} ({number})"

    def _packet(self) -> list[str]:
        explanation = self._explanation
        packet = explanation.outcome.packet
        assert packet is not None  # noqa: S101 - `lines` returned before
        lines = [f"{_INDENT}{packet_ends(packet)}, {protocol(packet.proto)}"]
        segment = explanation.segment
        if segment is None:
            lines.append(f"{_INDENT}{gist(packet)}")
            return lines
        side = explanation.outcome.direction
        ack = ""
        if segment.flags & ACK:
            ack = f", ack {self._number(segment.ack, 1 - side)}"
        lines.append(
            f"{_INDENT}flags {flag_letters(segment.flags)}, "
            f"seq {self._number(segment.seq, side)}{ack}, {bytes_of(segment.payload_len)} of data"
        )
        lines.append(f"{_INDENT}{self._offer(segment, side)}")
        lines += self._checksum()
        return lines

    def _checksum(self) -> list[str]:
        explanation = self._explanation
        finding = explanation.outcome.finding
        if not explanation.wrong_sum or (
            finding is not None and finding.reason is Reason.BAD_CHECKSUM
        ):
            return []
        if explanation.unfinished:
            return self._wrapped(
                "checksum unfinished, as a sender leaves it to its NIC; where the host received "
                "the packet so, it is INVALID (--checksum verify)"
            )
        return self._wrapped(
            "checksum wrong, but ignored: it may be an artefact of the capture (--checksum verify "
            "checks it)"
        )

    def _offer(self, segment: Segment, side: int) -> str:
        before = self._explanation.before
        said = f"window {segment.window}"
        peers = None if before is None else before.peers
        if peers is not None and segment.flags & 2 == 0 and peers[side].td_scale:
            scale = peers[side].td_scale
            said += f" shifted by {scale}: {bytes_of(segment.window << scale)}"
        options = parse_options(segment.options)
        if options.mss is not None:
            said += f", mss {options.mss}"
        if options.window_scale is not None:
            said += f", wscale {options.window_scale}"
        if options.sack_permitted:
            said += ", SACK permitted"
        for left, right in options.sack_blocks:
            said += f", SACK {self._number(left, 1 - side)}-{self._number(right, 1 - side)}"
        return said

    def _flow(self) -> list[str]:
        explanation = self._explanation
        lines = list(ladder(explanation.life, explanation.outcome.frame.number))
        escaped = explanation.life.escaped
        if escaped is not None:
            lines += self._wrapped(
                f"This packet fits the exact state of {direction_text(escaped)}: it escaped the "
                "translation of that flow."
            )
        if not explanation.first:
            lines.append(f"{_INDENT}This is the first packet of it in the capture.")
        if explanation.expired_s:
            lines.append(
                f"{_INDENT}Its entry had expired {explanation.expired_s:.1f} s before this packet."
            )
        elif explanation.before is not None:
            lines.append(f"{_INDENT}{_condition(explanation.before)}")
        return lines

    def _window(self) -> list[str]:
        before = self._explanation.before
        assert before is not None  # noqa: S101 - `lines` checked it
        assert before.peers is not None  # noqa: S101 - as above
        names = (
            endpoint(address(before.original.src), before.original.sport),
            endpoint(address(before.original.dst), before.original.dport),
        )
        sender = before.direction
        roles = ["receiver", "receiver"]
        roles[sender] = "sender"
        rows = [("", *(f"{name}" for name in names)), ("", *(f"the {role}" for role in roles))]
        one, other = before.peers
        rows += [
            (
                "td_end, sent up to",
                self._known(one, one.td_end, 0),
                self._known(other, other.td_end, 1),
            ),
            (
                "td_maxend, may send up to",
                self._known(one, one.td_maxend, 0),
                self._known(other, other.td_maxend, 1),
            ),
        ]
        sizes = (str(p.td_maxwin) if p.td_maxwin else "not seen yet" for p in before.peers)
        rows.append(("td_maxwin, largest window", *sizes))
        rows.append(("td_maxack, acknowledged", self._maxack(one, 1), self._maxack(other, 0)))
        rows.append(("td_scale, window shift", *(str(p.td_scale) for p in before.peers)))
        rows.append(("flags", *(_peer_flags(p) for p in before.peers)))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return [
            f"{_INDENT}{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip()
            for row in rows
        ]

    def _known(self, peer: Peer, number: Seq, side: int) -> str:
        """A number of a peer; `-` before a window of the peer was seen."""
        return self._number(number, side) if peer.td_maxwin else "-"

    def _maxack(self, peer: Peer, side: int) -> str:
        return self._number(peer.td_maxack, side) if peer.flags & IP_CT_TCP_FLAG_MAXACK_SET else "-"

    def _checks(self) -> list[str]:
        lines: list[str] = []
        for check in self._explanation.checks:
            if lines:
                lines.append("")
            lines += self._check(check)
        return lines

    def _check(self, check: BoundCheck) -> list[str]:
        words = BOUND_WORDS[check.bound]
        if check.holds:
            room = f"{bytes_of(check.room)} to spare" if check.room else "just"
            said = f"holds, {room}"
            verdict = self._styled(said, Style.GREEN)
        else:
            said = f"broken by {bytes_of(-check.room)}"
            verdict = self._styled(said, Style.RED, Style.BOLD)
        head = f"{words.numeral:<3} {words.question}"
        if self._columns is not None and _VERDICT_COLUMN + len(said) > self._columns:
            heads = [head, f"{_INDENT}{verdict}"]
        else:
            heads = [head.ljust(_VERDICT_COLUMN) + verdict]
        marks = []
        if check.other is not None:
            marks.append(self._mark(check.other, OTHER, check))
        marks.append(self._mark(check.limit, LIMIT, check))
        marks.append(self._mark(check.actual, ACTUAL, check))
        span = None
        if check.span is not None:
            begin, end = (distance(number, check.limit.seq) for number in check.span)
            span = (begin, max(begin, end))
        drawn = draw(marks, upper=check.upper, width=self._drawn_width, span=span)
        return [*heads, *(f"{_INDENT}{line}" for line in drawn)]

    def _mark(self, point: Point, sign: str, check: BoundCheck) -> Mark:
        # After an expression such as `td_end - 67584`, a relative number could be read as a term.
        equals = " = " if " - " in point.name else " "
        return Mark(
            at=distance(point.seq, check.limit.seq),
            sign=sign,
            label=f"{point.name}{equals}{self._number(point.seq, point.side)}",
        )

    def _verdict(self) -> list[str]:
        explanation = self._explanation
        finding = explanation.outcome.finding
        if finding is None:
            return self._wrapped(why_passed(explanation))
        sentence = finding_sentence(finding)
        said = f"INVALID, {finding.reason.value}"
        said += f": {sentence}." if sentence else "."
        return self._wrapped(f"{said} {explained(finding, explanation.circumstances)}")

    def _kernels(self) -> list[str]:
        explanation = self._explanation
        lines: list[str] = []
        for name, outcome in explanation.others:
            finding = outcome.finding
            said = ""
            if name == explanation.settings.kernel.name:
                said = ", as above"
            elif finding is not None:
                why = gist_of(finding)
                said = f": {why}" if why else ""
            lines.append(f"{_INDENT}{name:<5} {self._word(outcome)}{said}")
        return lines

    def _policy(self) -> list[str]:
        decision = self._explanation.outcome.decision
        assert decision is not None  # noqa: S101 - `lines` checked it
        does = _ACTIONS[decision.action]
        if decision.action is Action.DROP and self._explanation.segment is None:
            does = "the packet is dropped"
        action = self._styled(decision.action.value, ACTION_STYLES[decision.action])
        lines = [f"{_INDENT}{action}, by the rule {decision.rule}: {does}."]
        snapshot = self._explanation.outcome.snapshot
        if snapshot is not None and not snapshot.status & (IPS_SRC_NAT | IPS_DST_NAT):
            # The policy that stops escaped packets requires a translated flow.
            lines.append(f"{_INDENT}({UNTRANSLATED})")
        return lines


def _condition(before: FlowSnapshot) -> str:
    said = [state_name(before.state) or protocol(before.original.proto)]
    if before.association is not None:
        said += association_words(before.association)
    said.append(
        "seen in both directions"
        if before.status & IPS_SEEN_REPLY
        else "seen in one direction only"
    )
    if before.status & IPS_ASSURED:
        said.append("assured")
    return f"Before this packet: {', '.join(said)}."


def _peer_flags(peer: Peer) -> str:
    return ", ".join(name for bit, name in _PEER_FLAGS if peer.flags & bit) or "-"
