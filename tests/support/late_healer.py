# SPDX-License-Identifier: MIT
"""A healer on the kernel's ctnetlink that heals when the test decides."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from nfq_guard.engine import VERDICT_DROP, Engine, Judgment, Mode
from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import PROTO_TCP, Direction, FlowSnapshot
from nfq_guard.flows.ctnetlink import Netlink
from nfq_guard.flows.liberal import LiberalFlag
from nfq_guard.flows.open import NoFlows
from nfq_guard.lab.netns import Namespace
from nfq_guard.policy.decision import Action, Decision
from nfq_guard.policy.matcher import compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.seqno import add
from nfq_guard.service.worker.heal import Healer, Limits
from nfq_guard.service.worker.heal_record import NoRecord
from nfq_guard.telemetry.log import EventLog
from nfq_guard.telemetry.metrics import Stats
from nfq_guard.telemetry.sink import LineSink
from nfq_guard.wire.packet import ACK, Packet, Queued, Segment

LIMITS: Final = Limits(flow_per_minute=9, per_minute=9, most=9, timeout_s=100.0, both=False)
_OVER_BYTES: Final = 8


class LateHealer:
    """A `Healer` under a policy that heals all, and its counters."""

    def __init__(self, namespace: Namespace, log: Path, connection: Netlink | None = None) -> None:
        self._sink = LineSink(log)
        self._stats = Stats()
        table = {"default": "allow", "rule": [{"action": "heal"}]}
        policy = compile_policy(parse_policy(table, source="test"))
        engine = Engine(policy=policy, flows=NoFlows(), mode=Mode.ENFORCE)
        with namespace.entered():
            flag = LiberalFlag(connection)
        self._healer = Healer(flag, NoRecord(), engine, self._stats, EventLog(self._sink), LIMITS)

    def heal(self, judgment: Judgment, now: float = 0.0) -> None:
        """Run the healer's step after the verdict on a packet."""
        self._healer.process_batch([judgment], now)

    def tick(self, now: float) -> None:
        """Housekeeping."""
        self._healer.tick(now)

    def counts(self) -> tuple[int, int, int, int]:
        """Heals, heals undone, flows refused, and errors."""
        names = ("heals", "heals_undone", "heals_refused", "heal_errors")
        heals, undone, refused, errors = (self._stats.counters[name] for name in names)
        return heals, undone, refused, errors

    def close(self) -> None:
        self._healer.close()
        self._sink.close(0.0)


def judged(found: FlowSnapshot) -> Judgment:
    """The responder's next segment in an IPv4 flow, a little over what its peer has sent."""
    assert found.peers is not None
    client, server = found.peers
    flow = found.reply
    ack = add(client.td_end, _OVER_BYTES)
    segment = Segment(flow.sport, flow.dport, server.td_end, ack, ACK, 100, 0, b"", 0)
    packet = Packet(4, flow.src, flow.dst, PROTO_TCP, 40, 20, 64, 0, False, segment)
    breach = Breach(Reason.ACK_OVER, ack, client.td_end, _OVER_BYTES)
    return Judgment(
        Queued(b"", 0, "in0", "", 0, 0),
        packet,
        replace(found, direction=Direction.REPLY),
        Finding(Reason.ACK_OVER, breach),
        Decision(Action.HEAL, "rule"),
        VERDICT_DROP,
    )
