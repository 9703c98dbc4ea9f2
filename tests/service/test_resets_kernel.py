# SPDX-License-Identifier: MIT
"""The RST that a packet caused, on a host whose guard only looks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.overrun import REDIRECTED, Overrun
from tests.support.queue import GuardProcess, wait_for

pytestmark = pytest.mark.kernel


def test_the_reset_of_an_escaped_packet_names_it(
    namespace: Callable[[str], Namespace], tmp_path: Path
) -> None:
    """A packet of a redirected connection gets through untranslated; the host answers with an RST.

    Conntrack does not know the tuple of that RST, so it comes into the queue as well.
    """
    config = tmp_path / "c.toml"
    config.write_text(f'[daemon]\nlog_interval_s = 0\ncontrol_socket = "{tmp_path / "s"}"\n')
    peer, host = namespace("peer"), namespace("host")
    with (
        Overrun(peer, host) as overrun,
        GuardProcess(host, tmp_path / "log", "--config", str(config)).ready() as guard,
    ):
        connection = overrun.connect(REDIRECTED)
        overrun.overrun([connection], 1)
        wait_for(lambda: any("caused_by" in event for event in guard.events("packet_judged")))
        stray, reset = guard.events("packet_judged")[:2]
        assert (stray["reason"], stray["nat"], stray["verdict"]) == ("seq-over", "dnat", "accept")
        assert (reset["hook"], reset["reason"], reset["tcp_flags"]) == ("OUTPUT", "no-entry", "R")
        assert reset["seq"] == stray["ack"]
        assert reset["caused_by"]["reason"] == "seq-over"
        assert reset["caused_by"]["rule"] == "translated"
