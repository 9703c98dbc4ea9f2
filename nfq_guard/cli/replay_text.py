# SPDX-License-Identifier: MIT
"""Formats a replay as text: a streamed table, then a summary."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, final

from nfq_guard.capture.frame import frame_name, own_number
from nfq_guard.cli.terminal import folded, styled
from nfq_guard.conntrack.table import CTSTATES
from nfq_guard.glossary import finding_sentence
from nfq_guard.names import counted, packet_ends
from nfq_guard.policy.captured import not_captured_text
from nfq_guard.policy.matcher import CompiledPolicy
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.outside import outside
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.summary import Summary
from nfq_guard.replay.words import (
    DOUBTS,
    UNMODELLED,
    UNTRANSLATED,
    direction_text,
    doubt_gist,
    doubt_sentence,
    gist,
    gist_of,
    state_name,
)
from nfq_guard.telemetry.palette import ACTION_STYLES, CTSTATE_STYLES, Style

_HEADINGS: Final = ("frame", "time", "packet", "", "ctstate", "reason", "state", "policy", "why")
_CTSTATE: Final = 4
_RIGHT: Final = frozenset({0, 1})
_MOST_FLOWS: Final = 10
_DAY_NS: Final = 86_400_000_000_000
_GAP: Final = "  "
# Indent of continuation lines, for rows that are wider than the terminal.
_INDENT: Final = 6


class _Cell(NamedTuple):
    text: str
    styles: tuple[Style, ...] = ()


@final
class Table:
    """Formats rows below a heading; columns can only become wider."""

    def __init__(
        self, files: Sequence[str], *, every: bool, colour: bool, width: int | None = None
    ) -> None:
        """Begin.

        Args:
            files: Named in each row, if there are any.
            every: Whether the outcomes include packets that are not INVALID.
            colour: Whether to colour them.
            width: Columns of the terminal; a wider row continues in lines below it. None for no
                bound.
        """
        self._files = files
        self._every = every
        self._colour = colour
        self._width = width
        self._widths: list[int] | None = None

    def rows(self, outcomes: Sequence[Outcome]) -> str:
        """The lines of some outcomes, each with its line end."""
        rows = [self._cells(outcome) for outcome in outcomes]
        lines: list[str] = []
        if self._widths is None:
            self._widths = [0] * len(_HEADINGS)
            head = [_Cell(text, (Style.BOLD,)) for text in _HEADINGS]
            if not self._every:
                head[_CTSTATE] = _Cell("")
            self._widen([head, *rows])
            lines.append(self._line(head))
        else:
            self._widen(rows)
        lines.extend(self._line(row) for row in rows)
        return "\n".join(lines) + "\n"

    def _cells(self, outcome: Outcome) -> list[_Cell]:
        packet = outcome.packet
        decision = outcome.decision
        ctstate = "-" if outcome.ctstate is None else outcome.ctstate.value
        styles = () if outcome.ctstate is None else (CTSTATE_STYLES[outcome.ctstate],)
        return [
            _Cell(str(own_number(outcome.frame.number)), (Style.DIM,)),
            _Cell(f"{outcome.now:.6f}", (Style.DIM,)),
            _Cell("-" if packet is None else packet_ends(packet)),
            _Cell("" if packet is None else gist(packet)),
            _Cell(ctstate, styles) if self._every else _Cell(""),
            _Cell(_reason(outcome), (Style.RED,) if outcome.doubted is None else (Style.YELLOW,)),
            _Cell(state_name(outcome.state) or ""),
            _Cell("")
            if decision is None
            else _Cell(
                f"{decision.action.value} ({decision.rule})", (ACTION_STYLES[decision.action],)
            ),
            _Cell(self._why(outcome)),
        ]

    def _why(self, outcome: Outcome) -> str:
        finding = outcome.finding
        why = outcome.absent
        if finding is not None:
            why = gist_of(finding)
            if outcome.doubted is not None:
                why = ", ".join(filter(None, (why, doubt_gist(outcome.doubted))))
        elif outcome.ignored is not None:
            why = "ignored: its flow is unchanged"
        if self._files:
            return f"{self._files[outcome.frame.source]}: {why}".removesuffix(": ")
        return why

    def _widen(self, rows: Sequence[Sequence[_Cell]]) -> None:
        assert self._widths is not None  # noqa: S101 - set with the first row
        for row in rows:
            for column, cell in enumerate(row):
                self._widths[column] = max(self._widths[column], len(cell.text))

    def _line(self, cells: Sequence[_Cell]) -> str:
        """The cells in columns; on a narrow terminal all rows are broken at the same cells."""
        assert self._widths is not None  # noqa: S101 - set with the first row
        lines: list[str] = [""]
        used = 0
        for column, (cell, width) in enumerate(zip(cells, self._widths, strict=True)):
            if not width:
                continue
            if self._width is not None and used + width > self._width and used:
                lines.append(" " * _INDENT + _GAP)
                used = _INDENT + len(_GAP)
            text = styled(cell.text, *cell.styles) if self._colour else cell.text
            blanks = " " * (width - len(cell.text))
            lines[-1] += (f"{blanks}{text}" if column in _RIGHT else f"{text}{blanks}") + _GAP
            used += width + len(_GAP)
        whole = [line.rstrip() for line in lines]
        if self._width is not None:
            whole = [part for line in whole for part in folded(line, self._width)]
        return "\n".join(line for line in whole if line)


def _reason(outcome: Outcome) -> str:
    """The reason, with a question mark if it is in doubt."""
    if outcome.finding is None:
        return ""
    return outcome.finding.reason.value + ("" if outcome.doubted is None else "?")


def comment(outcome: Outcome) -> str:
    """The one-line comment of a packet in a written file."""
    finding = outcome.finding
    ctstate = outcome.ctstate
    if finding is None:
        word = "no packet for conntrack: " + outcome.absent if ctstate is None else ctstate.value
        note = "" if outcome.ignored is None else " (ignored)"
        if outcome.cause is not None:
            note += f", answers {frame_name(outcome.cause.frame)}"
        return f"{frame_name(outcome.frame.number)}: {word}{note}"
    sentence = finding_sentence(finding)
    said = f"{frame_name(outcome.frame.number)}: INVALID {finding.reason.value}"
    if sentence:
        said += f": {sentence}"
    if outcome.doubted is not None:
        said += f"; in doubt: {doubt_sentence(outcome.doubted)}"
    if outcome.cause is not None:
        said += f"; answers {frame_name(outcome.cause.frame)}"
    if outcome.state:
        said += f"; flow in {state_name(outcome.state)}"
    if outcome.decision is not None:
        said += f"; policy: {outcome.decision.action.value} ({outcome.decision.rule})"
    return said


def kernel_words(settings: ReplaySettings) -> str:
    """The rules in use, and whether they are a guess."""
    return f"{settings.kernel.name} (a guess)" if settings.kernel_doubt else settings.kernel.name


def summary_lines(
    summary: Summary, replayer: Replayer, settings: ReplaySettings, seconds: float, *, colour: bool
) -> list[str]:
    """The summary: one block per topic, with aligned counts."""
    rate = replayer.frames / seconds if seconds > 0 else 0
    lines = [
        f"{counted(replayer.frames, 'frame')} over {replayer.reader.span_s:,.1f} s of capture, "
        f"{counted(replayer.packets, 'packet')} in {counted(replayer.table.created, 'flow')}, "
        f"rules of kernel {kernel_words(settings)}; took {seconds:.1f} s ({rate:,.0f} frames/s)"
    ]

    def block(heading: str, counts: Mapping[str, int], most: int = 0) -> None:
        if not counts:
            return
        lines.append("")
        lines.append(styled(heading, Style.BOLD) if colour else heading)
        width = max(len(f"{count:,}") for count in counts.values())
        for index, (name, count) in enumerate(counts.items()):
            if most and index == most:
                lines.append(f"  {'...':>{width}}  and {len(counts) - most:,} more")
                break
            lines.append(f"  {count:>{width},}  {name}")

    ctstates = {
        state.value: count
        for state, count in zip(CTSTATES, replayer.by_ctstate, strict=True)
        if count
    }
    if replayer.ignored:
        ctstates["of these ignored by their flow"] = replayer.ignored
    if summary.by_doubt:
        ctstates["of these in doubt because of the capture"] = sum(summary.by_doubt.values())
    block("By ctstate", ctstates)
    block("Frames without a packet for conntrack", replayer.reader.without_packet)
    block("INVALID by reason", dict(summary.by_reason.most_common()))
    block("INVALID by flow", dict(summary.by_flow.most_common()), _MOST_FLOWS)
    block("RSTs that answer an INVALID packet", _resets(replayer), _MOST_FLOWS)
    decisions = {
        f"{action.value} (rule {rule})": count
        for (action, rule), count in summary.by_rule.most_common()
    }
    assumed = "" if replayer.translations or replayer.assumes_nat else f" ({UNTRANSLATED})"
    block(f"What the policy says{assumed}", decisions)
    notes = list(capture_notes(summary, replayer))
    if notes:
        lines.extend(
            ("", styled("About the capture", Style.BOLD) if colour else "About the capture")
        )
        lines.extend(f"  {note}" for note in notes)
    return lines


def _resets(replayer: Replayer) -> dict[str, int]:
    """RSTs by the reason of the packet that they answer, with the first of each."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for frame, cause in replayer.resets:
        counts[cause.reason] += 1
        first.setdefault(cause.reason, f"{frame_name(frame)} answers {frame_name(cause.frame)}")
    return {f"{reason}: {first[reason]}": count for reason, count in counts.most_common()}


def _policy_notes(replayer: Replayer) -> Iterator[str]:
    """Which rules may match otherwise than live."""
    policy = replayer.policy
    note = not_captured_text(policy.model) if isinstance(policy, CompiledPolicy) else ""
    if note:
        yield note


def _tunnel_notes(replayer: Replayer) -> Iterator[str]:
    """Which packets carry others, and whether those inside are judged."""
    reader = replayer.reader
    read = {name: count for name, count in reader.tunnels.items() if name not in reader.unread}
    unread = {name: count for name, count in reader.tunnels.items() if name in reader.unread}
    followed = "judged too" if replayer.decapsulates else "not judged: --decapsulate"
    for tunnels, what in ((read, followed), (unread, "not judged: replay does not read them")):
        if tunnels:
            kinds = ", ".join(f"{name} {count:,}" for name, count in tunnels.items())
            yield f"packets that carry others ({kinds}), those inside are {what}"


def _flow_notes(replayer: Replayer) -> Iterator[str]:
    """Notes on the flows, in addition to the judged packets."""
    yield from _tunnel_notes(replayer)
    copies = replayer.copies.copies
    if copies:
        verb = "shows" if copies == 1 else "show"
        yield f"{counted(copies, 'frame')} {verb} an earlier packet again: not judged"
    if replayer.translations:
        yield f"{counted(replayer.translations, 'flow')} with address translation"
    streams = replayer.streams
    one_way = streams.one_way()
    if one_way:
        yield (
            f"{counted(one_way, 'flow')} seen in one direction only: the host is on an asymmetric "
            "route, or the capture has a filter or the wrong interface"
        )
    escapes = streams.escapes.found
    if escapes:
        escaped = counted(len(escapes), "packet")
        yield f"{escaped} escaped the translation of a live flow:"
        for one in escapes[:_MOST_FLOWS]:
            flow, of = direction_text(one.key), direction_text(one.of.original)
            yield f"  {frame_name(one.frame)}: {flow}, of {of}"
        if len(escapes) > _MOST_FLOWS:
            yield f"  and {len(escapes) - _MOST_FLOWS:,} more"


def _time_notes(replayer: Replayer) -> Iterator[str]:
    """Notes on the times of the frames."""
    if replayer.reader.disordered:
        yield (
            f"{counted(replayer.reader.disordered, 'frame')} with a time before the frame before: "
            "reordercap puts them in order"
        )
    if replayer.reader.gap_frame and replayer.expires:
        days = replayer.reader.gap_ns // _DAY_NS
        yield (
            f"no frame for {counted(days, 'day')} before {frame_name(replayer.reader.gap_frame)}: "
            "every entry has expired there by the kernel's timeouts; not if the clock was set "
            "(--no-timeouts)"
        )


def capture_notes(summary: Summary, replayer: Replayer) -> Iterator[str]:
    """Notes on what the capture lacks."""
    for kind, count in summary.by_doubt.most_common():
        yield f"{counted(count, 'INVALID packet')} not counted above: {DOUBTS[kind]}"
    if replayer.drops:
        yield f"the capture reports {counted(replayer.drops, 'dropped frame')}"
    yield from _policy_notes(replayer)
    yield from _time_notes(replayer)
    yield from _flow_notes(replayer)
    if replayer.cut_options:
        cut = counted(replayer.cut_options, "segment")
        openings = replayer.streams.cut_openings
        what = ": SACK blocks may be missing"
        if openings:
            what = f", {openings:,} of them SYNs: no window is checked for the flows of these SYNs"
        yield f"the capture ends inside the TCP options of {cut}{what}"
    checksums = replayer.reader.checksums
    wrong = {
        "forgiven as offload": checksums.forgiven,
        "broken": checksums.broken,
        "unknown, treated as correct": checksums.unknown,
    }
    if any(wrong.values()):
        parts = ", ".join(f"{count:,} {name}" for name, count in wrong.items() if count)
        yield f"wrong checksums: {parts}; --checksum verify treats all as broken, ignore none"
    if checksums.unanswered:
        yield (
            f"{counted(checksums.unanswered, 'SYN')} without an answer and with an unfinished "
            "checksum: in a capture at the sender that is offload; at the receiver, such a SYN is "
            "INVALID (--checksum verify)"
        )
    began = replayer.streams.began_before
    if began:
        yield f"{counted(len(began), 'flow')} began before the capture"
    for proto, count in replayer.unmodelled.items():
        name, kernels = UNMODELLED[proto]
        yield f"{counted(count, 'packet')} of {name}: {kernels}"
    segments = outside(replayer.streams.began_before)
    if segments:
        yield (
            "the host that saw the beginning may have called "
            f"{counted(len(segments), 'packet')} of these INVALID (--assume-wscale):"
        )
        for segment in segments[:_MOST_FLOWS]:
            yield (
                f"  {frame_name(segment.frame)}: {segment.flow}, "
                f"{segment.distance:,} bytes ahead of its stream"
            )
        if len(segments) > _MOST_FLOWS:
            yield f"  and {len(segments) - _MOST_FLOWS:,} more"
