# SPDX-License-Identifier: MIT
"""The table of results equals those of our own conntrack for the same packets."""

from dataclasses import fields, replace

import pytest

from nfq_guard.conntrack.kernel_rules import KERNELS, KernelRules
from nfq_guard.conntrack.sysctls import Sysctls
from nfq_guard.conntrack.table import CT_INVALID, FlowTable
from nfq_guard.errors import UnavailableError
from nfq_guard.flow import FlowSnapshot
from nfq_guard.probe.packets import flow_of, packet_of
from nfq_guard.probe.questions import QUESTIONS, Question
from nfq_guard.probe.recognise import LIVE, recognise
from nfq_guard.wire.checksum import checksum_ok
from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet

GENERATIONS = pytest.mark.parametrize(
    "kernel", KERNELS.values(), ids=lambda kernel: str(kernel.name)
)


def answer_of(kernel: KernelRules, index: int, question: Question) -> str:
    """The result of a kernel with these rules."""
    table = FlowTable(kernel, Sysctls())
    letters = ""
    for segment in question.segments:
        packet = decode(packet_of(index, segment, question.first))
        letters += "x" if table.track(packet, 1000.0, None) == CT_INVALID else "."
    if not question.timed:
        return letters
    (found,) = table.lookup([flow_of(index)])
    assert isinstance(found, FlowSnapshot)
    return f"{letters} {found.timeout_s}"


def answers_of(kernel: KernelRules) -> list[str]:
    return [answer_of(kernel, *asked) for asked in enumerate(QUESTIONS)]


@GENERATIONS
@pytest.mark.parametrize("index", range(len(QUESTIONS)), ids=lambda index: QUESTIONS[index].field)
def test_the_answer_of_each_generation(kernel: KernelRules, index: int) -> None:
    assert answer_of(kernel, index, QUESTIONS[index]) == QUESTIONS[index].answers[kernel.name]


def test_every_rule_has_its_question() -> None:
    rules = [field.name for field in fields(KernelRules) if field.name != "name"]
    assert [question.field for question in QUESTIONS] == ["", *rules]


@pytest.mark.parametrize("index", range(len(QUESTIONS)))
def test_packets_are_sound(index: int) -> None:
    question = QUESTIONS[index]
    for segment in question.segments:
        octets = packet_of(index, segment, question.first)
        packet = decode(octets)
        assert isinstance(packet, Packet)
        assert packet.length == len(octets)
        assert checksum_ok(packet, octets)


@GENERATIONS
def test_a_known_generation_is_recognised(kernel: KernelRules) -> None:
    found = recognise(answers_of(kernel))
    assert (found.rules, found.nearest) == (kernel, kernel)
    assert (found.differences, found.unexplained) == ((), ())


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("5.14", {"reinit_by_any_segment": False}),
        ("6.1", {"closing_takes_any_rst": False}),
        ("6.1", {"rst_after_challenge_ack": False}),
        ("5.18", {"invalid_close_shortens": True}),
        ("5.10", {"closing_takes_any_rst": True, "ignores_invalid_rst": True}),
    ],
)
def test_a_mixture_is_put_together(base: str, changes: dict[str, bool]) -> None:
    """As of a vendor that has backported only some changes."""
    mixed = replace(KERNELS[base], name=LIVE, **changes)
    found = recognise(answers_of(mixed))
    assert answers_of(found.rules) == answers_of(mixed)
    assert found.rules.name == LIVE
    assert found.differences
    assert not found.unexplained


def test_an_answer_that_no_generation_gives_is_told() -> None:
    answers = answers_of(KERNELS["6.1"])
    index = next(i for i, one in enumerate(QUESTIONS) if one.field == "inexact_rst_spares_timeout")
    answers[index] = "....... 60"
    found = recognise(answers)
    assert found.rules == replace(KERNELS["6.1"], name=LIVE)
    assert found.nearest is KERNELS["6.1"]
    assert found.differences == found.unexplained == (QUESTIONS[index].differs,)


def test_a_probe_that_does_not_work_is_told() -> None:
    answers = answers_of(KERNELS["6.1"])
    answers[0] = "....."
    with pytest.raises(UnavailableError, match="the probe does not work on this kernel"):
        recognise(answers)
