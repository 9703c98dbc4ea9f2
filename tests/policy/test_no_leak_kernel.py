# SPDX-License-Identifier: MIT
"""The preset no-leak on a router that masquerades: what leaves, with which source."""

from pathlib import Path

import pytest

from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.wire.packet import ACK, FIN, RST
from tests.support.live import LiveConntrack
from tests.support.packets import tcp
from tests.support.queue import GuardProcess

pytestmark = pytest.mark.kernel

INNER, OUTER, PUBLIC = bytes((10, 88, 0, 8)), bytes((198, 51, 100, 10)), bytes((192, 0, 2, 8))


@pytest.mark.parametrize("flags", [RST, RST | ACK, FIN | ACK], ids=["rst", "rst-ack", "fin-ack"])
@pytest.mark.parametrize(("preset", "leaks"), [("router", True), ("no-leak", False)])
def test_late_ends_of_hidden_hosts(tmp_path: Path, preset: str, flags: int, *, leaks: bool) -> None:
    """No entry is left of the flow; the packet behind it shows that it has been decided."""
    config = tmp_path / "config.toml"
    config.write_text(
        '[daemon]\nmode = "enforce"\nbackend = "nft"\ncontrol_socket = ""\n'
        f'[policy]\ninclude = "preset:{preset}"\n',
        encoding="ascii",
    )
    with LiveConntrack(Sysctls(loose=False)) as live:
        live.space.run(
            *("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "out0", "-s", "10.0.0.0/8"),
            *("-j", "MASQUERADE"),
        )
        with GuardProcess(live.space, tmp_path / "log", "--config", str(config)).ready() as guard:
            late = tcp(INNER, OUTER, 443, 40000, flags)
            behind = tcp(PUBLIC, OUTER, 443, 40001, RST)
            if leaks:
                assert live.send_through_queue(late)[12:16] == INNER, "not translated"
            else:
                live.put(late)
            assert live.send_through_queue(behind)[12:16] == PUBLIC
            assert guard.stop() == 0
