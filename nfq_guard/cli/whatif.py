# SPDX-License-Identifier: MIT
"""`nfq-guard whatif`: what one or two policies would have done to recorded packets."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from nfq_guard.capture.reader import Capture
from nfq_guard.capture.source import STDIN
from nfq_guard.cli import replay_run as replaying
from nfq_guard.cli.options import add_format
from nfq_guard.cli.recording import may_have_events, missing_end, opened
from nfq_guard.cli.terminal import paint, printable, write_json, write_line
from nfq_guard.errors import EXIT_OK, UsageError
from nfq_guard.flow import Hook
from nfq_guard.names import counted
from nfq_guard.policy.captured import not_captured_text
from nfq_guard.policy.decision import Action
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.model import RULE_HIDDEN_HALF
from nfq_guard.policyfile import load_compiled
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.words import UNTRANSLATED
from nfq_guard.resets import RESET_WITHIN_S
from nfq_guard.service.config import DEFAULT_PATH, load_config
from nfq_guard.telemetry.palette import Style
from nfq_guard.telemetry.reader import EventReader, Unrecorded
from nfq_guard.whatif.conversations import Fate
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.recorded import Judged, Recorded
from nfq_guard.whatif.result import result, top
from nfq_guard.whatif.tally import OTHERS, Tally, counted_apart
from nfq_guard.whatif.trial import Trial
from nfq_guard.wire.packet import Queued

_DESCRIPTION: Final = """\
Evaluate one or two policies on recorded packets: a daemon's events or a capture.
Report what each policy would drop, the differences, drops in flows that continued (false
positives), and accepted packets that were followed by an RST (false negatives)."""

_EPILOG: Final = f"""\
A packet counts as followed by an RST if an RST of its flow comes within {RESET_WITHIN_S:g} s.
Otherwise its flow continued if any later packet of it is recorded, in another event. The times
of the recording count, not its order. Only packets that were accepted
allow such conclusions; a capture does not record verdicts, so all of its packets count as accepted.
A capture has every packet of its flows, events only the INVALID ones, so more fates are unknown
there. A daemon writes events of packets that its policy allows only with log_allowed = true.
Events are a file of JSON Lines, the output of journalctl -o json, or the log of a container, as its
runtime keeps it on the node or kubectl logs prints it. They are those of one host: two hosts that
forward a packet both judge it, so in the joined events of both it counts twice, and its second
event shows that its flow continued."""

_MOST_LINES: Final = 5
_CAPTURE_QUEUED: Final = Queued(b"", int(Hook.PREROUTING), "", "", 0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "recording",
        metavar="EVENTS|CAPTURE",
        help="the recorded packets, plain or compressed; - for events on standard input",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE",
        action="append",
        default=[],
        help="a file or preset:NAME; give it twice to compare two policies (default: the policy of "
        f"{DEFAULT_PATH})",
    )
    add_format(parser)
    replaying.add_decapsulate(parser)
    replaying.add_replay_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate the policies on the recording."""
    if len(args.policy) > 2:
        raise UsageError(f"--policy: expected at most two, found {len(args.policy)}")
    settings = replaying.settings_of(args, every=True, decapsulate=args.decapsulate)
    policies = [load_compiled(reference) for reference in args.policy]
    if not policies:
        policies.append(compile_policy(load_config(None).model))
    reader = EventReader()
    damage = ""
    untranslated = False
    with opened(args.recording) as stream:
        kind = "events" if may_have_events(stream) else "capture"
        trial = Trial(policies, has_times=kind == "capture")
        if kind == "events":
            _run_events(args.recording, stream, trial, reader)
            damage = missing_end(stream)
    if kind == "capture":
        if args.recording == STDIN:
            raise UsageError("standard input is a capture: name its file")
        untranslated, damage = _run_capture(args.recording, trial, settings)
    trial.end()
    unrecorded = reader.unrecorded if kind == "events" else None
    if args.format == "json":
        replayed = (settings.kernel.name, settings.kernel_doubt or None)
        rules = replayed if kind == "capture" else (None, None)
        found = result(
            trial,
            printable(args.recording),
            kind,
            unrecorded,
            *rules,
            skipped_lines=reader.skipped,
            damage=printable(damage) or None,
        )
        write_json(found)
    else:
        for line in _lines(trial, printable(args.recording), kind, unrecorded):
            write_line(line)
        if untranslated and trial.invalid:
            write_line()
            write_line(UNTRANSLATED)
    return EXIT_OK


def _run_events(recording: str, stream: BinaryIO, trial: Trial, reader: EventReader) -> None:
    """Process the events of a file; lines that are not events are reported on standard error."""
    for read in reader.read(stream):
        for packets in recorded(read):
            trial.take(packets)
    if reader.skipped:
        sys.stderr.write(
            f"nfq-guard: {printable(recording)}: {reader.skipped_text()}, "
            f"the first in line {reader.first_skipped}\n"
        )
    if not trial.invalid and reader.lines and not reader.unrecorded.texts():
        raise UsageError(f"{recording}: expected packet_judged events, found none")


def _run_capture(recording: str, trial: Trial, settings: ReplaySettings) -> tuple[bool, str]:
    """Process the packets of a capture.

    Returns:
        Whether all flows were judged as untranslated, and why the capture was not read to its end;
        empty if it was.
    """
    capture = Capture(recording)
    replayer = Replayer(settings)
    try:

        def take(outcomes: Sequence[Outcome]) -> None:
            for outcome in outcomes:
                known = replayer.translations > 0 or replayer.assumes_nat
                packet = _recorded(outcome, nat_known=known)
                if packet is not None:
                    trial.take(packet)
                if outcome.doubted is not None:
                    trial.doubtful += 1

        for frames in capture.batches():
            take(replayer.replay(frames))
        replayer.drops = capture.drops
        take(replayer.finish())
        replaying.refuse_unknown_links(replayer, [capture.name])
    finally:
        capture.close()
    if capture.damage:
        sys.stderr.write(f"nfq-guard: {capture.damage}\n")
    return not replayer.translations and not replayer.assumes_nat, capture.damage or ""


def _recorded(outcome: Outcome, *, nat_known: bool) -> Recorded | None:
    packet = outcome.packet
    if packet is None:
        return None
    judged = None
    if outcome.finding is not None and outcome.doubted is None:
        judged = Judged(
            queued=_CAPTURE_QUEUED,
            snapshot=outcome.snapshot,
            finding=outcome.finding,
            nat_known=nat_known,
        )
    return Recorded(
        number=outcome.frame.number,
        first_s=outcome.frame.time_ns / 1_000_000_000,
        time_s=outcome.frame.time_ns / 1_000_000_000,
        count=1,
        alike=1,
        packet=packet,
        judged=judged,
        passed=True,
    )


def _lines(trial: Trial, recording: str, kind: str, unrecorded: Unrecorded | None) -> Iterator[str]:
    invalid = counted(trial.invalid, "INVALID packet")
    among = f" among {trial.packets}" if kind == "capture" else ""
    yield f"{recording}: {invalid}{among}"
    if trial.doubtful:
        doubtful = counted(trial.doubtful, "more packet")
        yield f"  {doubtful} in doubt because of the capture, not counted (see replay, --strict)"
    if unrecorded is not None:
        for text in unrecorded.texts():
            yield paint(f"not in these counts: {text}", Style.YELLOW)
    letters = "AB"[: len(trial.policies)]
    for letter, policy, tally in zip(letters, trial.policies, trial.tallies, strict=True):
        yield ""
        title = f"policy {letter}: {policy.model.source}"
        yield paint(title, Style.BOLD)
        yield f"  would drop {_drops(tally)}, accept {tally.passes}"
        note = not_captured_text(policy.model) if kind == "capture" else ""
        if note:
            yield paint(f"  {note}", Style.YELLOW)
        spared = tally.by_rule.get(RULE_HIDDEN_HALF, 0)
        if spared:
            yield (
                f"  {spared} of these accepts by the built-in rule {RULE_HIDDEN_HALF}: rules of "
                "the host hide the other direction of the flow"
            )
        heals = tally.by_action.get(Action.HEAL, 0)
        if heals:
            about = "" if tally.rules_exact else "about "
            yield f"  {about}{heals} of these drops by rules that heal"
        flows = tally.heals_by_flow
        if flows:
            yield (
                f"  {_number(flows)} of the flows {_were(len(flows))} not healed when recorded: in "
                "force, the policy heals a flow, and drops fewer of its packets from then on"
            )
        yield from _drop_lines(tally, kind)
        yield from _estimate_lines(tally)
        if tally.missed:
            yield paint(
                f"  would accept {tally.missed} that {_were(tally.missed)} followed by an RST "
                "(false negatives):",
                Style.RED,
            )
            yield from _ranked(tally.false_negatives)
        if tally.if_translated:
            count = tally.if_translated
            them, their = ("it", "its") if count == 1 else ("them", "their")
            yield (
                f"  would accept {count} that {_were(count)} followed by an RST, and drop {them} "
                f"if {their} flow is translated, which the capture does not show"
            )
    if len(letters) == 2:
        yield ""
        yield paint("difference", Style.BOLD)
        for letter, tally in zip(letters, trial.differences, strict=True):
            yield f"  only {letter} would drop {_drops(tally)}"
            yield from _drop_lines(tally, kind)
            yield from _estimate_lines(tally)


def _estimate_lines(tally: Tally) -> Iterator[str]:
    if not tally.fates_exact:
        yield (
            "  numbers by the fate of the flow are estimates: an event of several packets does not "
            "have the time of each"
        )


def _drop_lines(tally: Tally, kind: str) -> Iterator[str]:
    if not tally.drops:
        return
    if not tally.exact:
        yield "  all numbers of packets are estimates, within these bounds"
    by_reason = {str(reason): count for reason, count in tally.drops_by_reason.items()}
    yield f"  by reason: {', '.join(f'{name} {count}' for name, count in top(by_reason).items())}"
    yield f"  by flow ({_number(tally.drops_by_flow)}):"
    yield from _ranked(tally.drops_by_flow)
    yield f"  by source ({_number(tally.drops_by_peer)}):"
    yield from _ranked(tally.drops_by_peer)
    yield f"  for example, by {'frame' if kind == 'capture' else 'line'}:"
    for example in tally.examples[:_MOST_LINES]:
        where = f"{example.number:>9}"
        yield f"  {where}  {example.flow}  {example.reason}  rule {example.rule}"
    fates = tally.drop_fates
    if fates[Fate.LIVED]:
        hit = counted(fates[Fate.LIVED], "drop")
        yield paint(f"  {hit} in flows that continued (false positives):", Style.RED)
        yield from _ranked(tally.false_positives)
    rest = {
        "of packets that were followed by an RST": fates[Fate.RESET],
        "of packets that were dropped when recorded": tally.confirmed,
        "in flows whose fate is unknown": fates[Fate.UNKNOWN],
    }
    for words, count in rest.items():
        if count:
            yield f"  {counted(count, 'drop')} {words}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _drops(tally: Tally) -> str:
    """The number of drops, with its bounds if it is an estimate."""
    if tally.exact:
        return str(tally.drops)
    return f"about {tally.drops} (between {tally.least_drops} and {tally.most_drops})"


def _ranked(counts: dict[str, int]) -> Iterator[str]:
    for name, count in top(counts, _MOST_LINES).items():
        yield f"  {count:>9}  {name}"
    if len(counts) > _MOST_LINES:
        yield f"  {'':>9}  and {len(counts) - _MOST_LINES} more"


def _number(counts: dict[str, int]) -> str:
    apart = counted_apart(counts)
    return f"{apart} and {OTHERS}" if apart < len(counts) else str(apart)
