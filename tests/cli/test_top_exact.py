# SPDX-License-Identifier: MIT
"""The totals that `top` shows are what the daemon counted."""

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_guard import names
from nfq_guard.cli.top_flow import key_of
from nfq_guard.cli.top_view import View
from nfq_guard.flow import FlowKey
from tests.support.policies import Case, tables
from tests.support.recording import CASES, LIMITS, TRAFFIC, Limits, Live, Traffic, compiled
from tests.support.status import daemon_status
from tests.support.top import text


def _shown_key(key: FlowKey) -> tuple[str, str, int, str, int]:
    proto, one, other, one_port, other_port = key
    ends = names.address(one) or "", one_port, names.address(other) or "", other_port
    return names.protocol(proto), *ends


@settings(max_examples=40)
@given(table=tables(), packets=CASES, traffic=TRAFFIC, limits=LIMITS, parts=st.integers(1, 3))
def test_top_equals_the_live_counters(
    table: dict[str, object], packets: list[Case], traffic: Traffic, limits: Limits, parts: int
) -> None:
    """At any time: packets whose event is not due yet count too.

    Only the limit on all events can leave out a flow, until its next event, or packets of it.
    """
    live = Live(compiled(table), compiled(table), limits)
    view = View()
    size = len(traffic) // parts + 1
    for part in range(parts):
        live.run(packets, traffic[part * size : (part + 1) * size])
        pending = live.pending()
        flows = orjson.loads(orjson.dumps(live.history.flows(None, 10_000, pending)))
        judged = live.stats.plain()["judged"]
        status = daemon_status(reasons={reason: found for reason, found in judged.items() if found})
        view.take(status, flows, 10.0 + part)
        head = text(view.lines(200, 300))
        for reason, found in status.reasons.items():
            assert f"{reason} {sum(found.values())} (" in head

        shown = {key_of(flow): flow for flow in view.flows()}
        suppressed = live.limiter.suppressed
        missing = suppressed + sum(
            some.packets for some in pending if _shown_key(some.key) not in shown
        )
        assert len(shown) == len(flows)
        for key, reasons in live.flows.items():
            flow = shown.pop(_shown_key(key), None)
            if flow is None:
                missing -= reasons.total()
                continue
            missing -= reasons.total() - flow["packets"]
            assert flow["packets"] == sum(flow["reasons"].values())
            for reason, packets_of_flow in reasons.items():
                found_here = flow["reasons"].get(reason, 0)
                assert packets_of_flow - suppressed <= found_here <= packets_of_flow
        assert not shown
        assert missing == 0
        assert sum(flow["resets"] for flow in flows) <= live.resets.total()
