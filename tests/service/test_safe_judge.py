# SPDX-License-Identifier: MIT
from collections.abc import Sequence

import pytest

from nfq_guard.engine import Judgment
from nfq_guard.service.worker.safe_judge import Failure, SafeJudge
from nfq_guard.wire.packet import Queued
from tests.support.judgments import FakeEngine, queued
from tests.support.packets import A4, A6, B4, B6, tcp, udp


def test_batch_is_judged_whole() -> None:
    engine = FakeEngine()
    judge = SafeJudge(engine, report=lambda _: pytest.fail("nothing raised"))
    judged = judge.judge([queued(b"D"), queued(b"a")], now=0)
    assert [one is not None and one.verdict for one in judged] == [0, 1]
    assert engine.calls == 1


def test_only_the_packet_that_raises_has_no_judgment() -> None:
    reports: list[Failure] = []
    judge = SafeJudge(FakeEngine(), report=reports.append)
    judged = judge.judge([queued(b"D"), queued(b"X\x01"), queued(b"a"), queued(b"X\x02")], now=0)
    assert [None if one is None else one.verdict for one in judged] == [0, None, 1, None]
    assert judge.failures == 2
    (report,) = reports
    assert report.problem == "ZeroDivisionError: a bug"
    assert "judgments.py" in report.where
    assert "Traceback" in report.trace
    assert report.octets == "5801"


def test_same_place_is_reported_once() -> None:
    reports: list[Failure] = []
    judge = SafeJudge(FakeEngine(), report=reports.append)
    for _ in range(100):
        judge.judge([queued(b"X")], now=0)
    assert (len(reports), judge.failures) == (1, 100)


class Broken(FakeEngine):
    """An engine that judges nothing."""

    def judge(self, batch: Sequence[Queued], *, now: float) -> list[Judgment]:
        raise ZeroDivisionError(f"{len(batch)} packets at {now}")


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        (tcp(A4, B4, 1, 2, 0), b"secret"),
        (tcp(A6, B6, 1, 2, 0), b"secret"),
        (udp(A4, B4, 1, 2, b"secret")[:-6], b"secret"),
    ],
    ids=("IPv4", "IPv6", "UDP"),
)
def test_the_report_has_no_payload(headers: bytes, payload: bytes) -> None:
    """Events have none, so neither has this one."""
    reports: list[Failure] = []
    SafeJudge(Broken(), report=reports.append).judge([queued(headers + payload)], now=0)
    assert [report.octets for report in reports] == [headers.hex()]
