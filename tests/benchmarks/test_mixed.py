# SPDX-License-Identifier: MIT
"""The capture of the replay's benchmark is the same in each run, and has the stated content."""

import io
from pathlib import Path

from benchmarks.mixed import write_mixed
from nfq_guard.capture.reader import Capture
from nfq_guard.replay.replayer import Replayer
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.replay.summary import Summary

_FRAMES = 12_000


def test_mixed_traffic(tmp_path: Path) -> None:
    written = io.BytesIO()
    assert write_mixed(written, _FRAMES) == _FRAMES
    again = io.BytesIO()
    write_mixed(again, _FRAMES)
    assert written.getvalue() == again.getvalue()
    path = tmp_path / "mixed.pcap"
    path.write_bytes(written.getvalue())
    capture = Capture(str(path))
    replayer = Replayer(ReplaySettings())
    summary = Summary()
    for frames in capture.batches():
        for outcome in replayer.replay(frames):
            summary.add(outcome)
    for outcome in replayer.finish():
        summary.add(outcome)
    capture.close()
    reader = replayer.reader
    assert replayer.frames == _FRAMES
    assert not reader.unknown_links
    assert "an IP header that the kernel throws away" not in reader.without_packet
    assert reader.tunnels["GRE"] > 50
    assert reader.without_packet["no IP packet"] > 10
    assert reader.without_packet["a fragment whose datagram is not whole"] > 10
    assert reader.checksums.forgiven > 100
    assert reader.checksums.broken == 0
    assert replayer.table.created > 500
    assert len(replayer.streams.began_before) > 5
    # The strays of earlier connections.
    assert 5 < sum(summary.by_reason.values()) < _FRAMES / 100
