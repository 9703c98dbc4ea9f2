# SPDX-License-Identifier: MIT
"""Coverage-guided fuzzing of the capture reader, the decoder and the replay.

    python tests/fuzz_replay.py [--seconds N] [CORPUS] [libFuzzer options]

The input is a capture file. Every frame that can be read is replayed under each generation of
kernels, and each outcome rendered in every way that we have; whatever happens, the only exception
is `CaptureError`. Memory is bounded by libFuzzer's `-rss_limit_mb`. Findings are written to the
working directory as `crash-...`; give one as the corpus to run it alone.
"""

import gzip
import io
import lzma
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nfq_guard"]):
    from nfq_guard.capture.frame import CaptureError
    from nfq_guard.capture.reader import Capture
    from nfq_guard.capture.writer import PcapngWriter
    from nfq_guard.cli.replay_text import Table, comment, summary_lines
    from nfq_guard.conntrack.kernel_rules import KERNELS
    from nfq_guard.flow import IPS_DST_NAT
    from nfq_guard.policy.default import default_policy
    from nfq_guard.replay.frame_record import record
    from nfq_guard.replay.replayer import Replayer
    from nfq_guard.replay.settings import ReplaySettings
    from nfq_guard.replay.summary import Summary

from tests.support import captures
from tests.support.conversation import Conversation

_POLICY = default_policy()
_SETTINGS = [
    ReplaySettings(kernel=rules, every=True, capacity=64, nat_status=IPS_DST_NAT)
    for rules in KERNELS.values()
]
_SCRATCH = Path(tempfile.mkdtemp(prefix="nfqg-fuzz-")) / "capture"


def replay(octets: bytes) -> None:
    """One input."""
    _SCRATCH.write_bytes(octets)
    try:
        capture = Capture(str(_SCRATCH))
    except CaptureError:
        return
    replayers = [Replayer(settings, _POLICY) for settings in _SETTINGS]
    table = Table((), every=True, colour=False)
    summary = Summary()
    writer = PcapngWriter(io.BytesIO())
    try:
        for frames in capture.batches():
            for replayer in replayers:
                outcomes = replayer.replay(frames)
                table.rows(outcomes)
                for outcome in outcomes:
                    record(outcome, ())
                    writer.write(outcome.frame, comment(outcome))
                    summary.add(outcome)
    except CaptureError:
        return
    finally:
        capture.close()
    for replayer in replayers:
        summary_lines(summary, replayer, ReplaySettings(), 1.0, colour=False)


def seeds() -> Iterator[bytes]:
    """Captures of every kind, small."""
    for family in (4, 6):
        talk = Conversation(family=family)
        talk.open()
        talk.client("PA", 1, 1, length=10)
        talk.server("A", 1, 11, length=10)
        talk.client("A", 11, 90_000)
        talk.client("R", 5)
        talk.client("FA", 11, 11)
        talk.server("FA", 11, 12)
        frames = [frame.octets for frame in talk.frames]
        whole = captures.pcap([(1, n, octets) for n, octets in enumerate(frames)], linktype=101)
        yield whole
        yield gzip.compress(whole)
        yield lzma.compress(whole)
        for linktype, header in (
            (1, bytes(12) + (b"\x08\x00" if family == 4 else b"\x86\xdd")),
            (113, bytes(14) + (b"\x08\x00" if family == 4 else b"\x86\xdd")),
            (276, (b"\x08\x00" if family == 4 else b"\x86\xdd") + bytes(18)),
            (239, b"\x02\0\0\0\xff\x00\x09\x00"),
        ):
            parts = [captures.section(), captures.interface(linktype)]
            parts += [captures.enhanced(header + octets) for octets in frames]
            yield b"".join(parts)


def main() -> None:
    """Run libFuzzer."""
    words = sys.argv[1:]
    seconds = 300
    if words and words[0] == "--seconds":
        seconds = int(words[1])
        words = words[2:]
    if not any(not word.startswith("-") for word in words):
        corpus = Path(tempfile.mkdtemp(prefix="nfqg-corpus-"))
        for number, seed in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        words.insert(0, str(corpus))
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=768", "-max_len=4096", "-timeout=10"]
    atheris.Setup([sys.argv[0], *limits, *words], replay)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
