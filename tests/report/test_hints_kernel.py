# SPDX-License-Identifier: MIT
"""Each hint is found when its cause is produced, with a guard on the live kernel's conntrack.

Each cause has its own port, and the hints are those of its events alone.
"""

import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from nfq_guard.conntrack.sysctls import DEFAULT_SYSCTLS
from nfq_guard.finding import Reason
from nfq_guard.nfqueue.counters import QUEUES
from nfq_guard.nfqueue.counters import parse as parse_counters
from nfq_guard.report.hints import Hint, hints
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.telemetry.reader import EventReader
from tests.support.live import LiveConntrack
from tests.support.queue import QUEUE, GuardProcess, wait_for
from tests.support.reason_traces import OPEN
from tests.support.trace import PLACES, Ends, parse

pytestmark = pytest.mark.kernel

_TIMEOUT: Final = "net.netfilter.nf_conntrack_tcp_timeout_established"
_CLOCKED: Final = (
    "> S 0:0(0) win 65535 <mss 1460,sackOK,TS 1 0,wscale 7>",
    "< S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK,TS 1 1,wscale 7>",
    "> . 1:1(0) ack 1 win 512 <TS 2 1>",
)
_UNSCALED: Final = (
    "> S 0:0(0) win 65535 <mss 1460,sackOK>",
    "< S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK>",
    "> . 1:1(0) ack 1 win 65535",
)


class Lab:
    """A guard that accepts everything, and the packets sent to it."""

    def __init__(self, live: LiveConntrack, log: Path) -> None:
        self._live = live
        self._log = log

    def send(self, port: int, flow: int, *lines: str) -> None:
        """Send packets of a flow, each when the one before has its verdict."""
        for line in lines:
            self._live.put(Ends(ports=(2000 + flow, port)).octets(parse(line, PLACES["plain"])))
            wait_for(lambda: parse_counters(QUEUES.read_text())[QUEUE].waiting == 0)

    def pour(self, port: int, flows: int, *lines: str) -> None:
        """Send the packets of all flows at once."""
        for flow in range(flows):
            for line in lines:
                self._live.put(Ends(ports=(2000 + flow, port)).octets(parse(line, PLACES["plain"])))
        wait_for(lambda: parse_counters(QUEUES.read_text())[QUEUE].waiting == 0)

    def sysctl(self, name: str, value: int) -> None:
        self._live.space.run("sysctl", "-q", "-w", f"{name}={value}")

    def forget(self) -> None:
        self._live.forget()

    def hints(self, *ports: int) -> dict[str, Hint]:
        """The hints in the events so far of those ports."""
        return {hint.cause: hint for hint in hints(self._summary(*ports), ())}

    def has(self, reason: Reason, port: int) -> bool:
        """Whether an event of that port has the reason."""
        return reason in self._summary(port).counts.reasons

    def _summary(self, *ports: int) -> Summary:
        summaries: defaultdict[bool, Summary] = defaultdict(Summary)
        for read in EventReader().read(io.BytesIO(self._log.read_bytes())):
            add_event(summaries[{read.event.sport, read.event.dport} & {*ports} != set()], read)
        return summaries[True]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("hints")
    config = place / "guard.toml"
    config.write_text(
        f"[daemon]\nqueue = {QUEUE}\nlog_interval_s = 0\nlog_allowed = true\n"
        f'log_events_per_s = 1000000\ncontrol_socket = "{place / "s"}"\n[policy]\ndefault = "log"\n'
        'on_unknown = "log"\n'
    )
    with ExitStack() as stack:
        live = stack.enter_context(LiveConntrack(DEFAULT_SYSCTLS))
        guard = GuardProcess(live.space, place / "log", "--config", str(config)).ready()
        stack.enter_context(guard)
        # The counters of queues are those of the namespace.
        stack.enter_context(live.space.entered())
        yield Lab(live, place / "log")
        assert guard.stop() == 0


def _retransmissions(lab: Lab, port: int) -> None:
    """Data beyond a window that conntrack did not see grow: sent again and again."""
    for flow in range(6):
        copies = (f"< P. 300000:300100(100) ack 1 win 512 <TS {clock} 2>" for clock in (7, 7, 90))
        lab.send(port, flow, *_CLOCKED, *copies)


def _lost_scale(lab: Lab, port: int) -> None:
    """A device took the window scale option out of the handshake that conntrack saw."""
    for flow in range(12):
        lab.send(port, flow, *_UNSCALED, f"> P. {200_000 + flow}:{200_001 + flow}(1) ack 1 win 512")


def _one_way(lab: Lab, port: int) -> None:
    """The answers take another path."""
    for flow in range(12):
        lab.send(port, flow, "> S 0:0(0)", "> . 1:1(0) ack 1")


def _flag_scan(lab: Lab, port: int) -> None:
    for flow in range(12):
        lab.send(port, flow, "> SF 0:0(0)")


def _forged_flood(lab: Lab, port: int) -> None:
    for flow in range(24):
        lab.send(port, flow, f"> S. {flow}:{flow}(0) ack 1")


def _idle(lab: Lab, port: int) -> None:
    """Connections that are idle for longer than the timeout, and then end."""
    lab.sysctl(_TIMEOUT, 1)
    for flow in range(12):
        lab.send(port, flow, *OPEN)
    time.sleep(1.5)
    for flow in range(12):
        lab.send(port, flow, "> F. 101:101(0) ack 201 win 512")
    lab.sysctl(_TIMEOUT, DEFAULT_SYSCTLS.tcp_timeouts_s[3])


_CAUSES: Final[list[Callable[[Lab, int], None]]] = [
    _retransmissions,
    _lost_scale,
    _one_way,
    _flag_scan,
    _forged_flood,
    _idle,
]


@pytest.mark.parametrize(
    ("cause", "produced", "evidence"),
    [
        (
            "Late or repeated segments.",
            _retransmissions,
            "12 of 18 segments outside the window carry a sequence number that an earlier one of "
            "their flow had: 6 with the same timestamp, 6 with a later timestamp; "
            "12 in the reply direction, 12 in state ESTABLISHED; ",
        ),
        (
            "Conntrack does not know the real window.",
            _lost_scale,
            "12 of 12 packets over bound I are over 65,535 bytes beyond a window",
        ),
        (
            "One direction takes another path.",
            _one_way,
            "0 packets acknowledge data that was not seen, and 12 continue a handshake",
        ),
        (
            "A scan.",
            _flag_scan,
            "12 packets have TCP flags that no TCP implementation sends together.",
        ),
        (
            "A scan or a forged flood.",
            _forged_flood,
            "24 of 24 packets are the only one of their flow.",
        ),
        (
            "Entries expire before their connections end.",
            _idle,
            "12 of 12 packets without an entry are a FIN or an RST",
        ),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_cause_has_its_hint(
    lab: Lab, cause: str,
    produced: Callable[[Lab, int], None], evidence: str,
) -> None:  # fmt: skip
    port = 100 + _CAUSES.index(produced)
    produced(lab, port)
    wait_for(lambda: cause in lab.hints(port))
    wait_for(lambda: evidence in lab.hints(port)[cause].evidence)


def test_a_failover_and_an_overloaded_receiver(lab: Lab) -> None:
    """Both show against what was before and after; the run goes on until it was long enough."""
    calm, lost, burst = 1000, 1001, 1002
    lab.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    _await_strictness(lab, 1003)
    for flow in range(12):
        lab.send(lost, flow, *OPEN)
    begin = time.monotonic()
    _background(lab, calm, begin, lambda: time.monotonic() > begin + 4)
    lab.forget()  # as where another router takes over, which has no entries
    for flow in range(12):
        lab.send(lost, flow, "> P. 101:201(100) ack 201 win 512")
    failover = "The table was emptied: a failover, a flush or a restart."
    # A full backlog delays segments of all flows, whose retransmissions then come beside them.
    lab.pour(burst, 20, "> S 0:0(0)", *["> . 1:1(0) ack 1"] * 12)
    overloaded = "The receiver is overloaded."
    _background(
        lab,
        calm,
        begin,
        lambda: failover in lab.hints(calm, lost) and overloaded in lab.hints(calm, burst),
    )
    assert lab.hints(calm, lost)[failover].evidence.startswith("12 of ")
    assert "flows came within 1 s" in lab.hints(calm, burst)[overloaded].evidence


def _await_strictness(lab: Lab, port: int) -> None:
    """Wait until the daemon, which reads sysctls every few seconds, knows of tcp_loose=0."""

    def knows() -> bool:
        lab.send(port, 0, "> . 1:1(0) ack 1")
        return lab.has(Reason.NO_ENTRY, port)

    wait_for(knows)


def _background(lab: Lab, port: int, begin: float, until: Callable[[], bool]) -> None:
    """Packets that hint at nothing, a few a second."""
    while not until():
        assert time.monotonic() < begin + 120
        serial = int((time.monotonic() - begin) * 10)
        lab.send(port, serial % 20, "> S 0:0(0)", f"> . {serial}:{serial}(0) ack 1")
        time.sleep(0.2)
