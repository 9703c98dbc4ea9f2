# SPDX-License-Identifier: MIT
"""The glossary covers every reason, bound and ignored case."""

import pytest

from nfq_guard.finding import BOUNDS, Breach, Finding, Ignored, Reason
from nfq_guard.glossary import (
    BOUND_WORDS,
    CAUSES,
    CONSEQUENCES,
    IGNORED,
    REASONS,
    Cause,
    Circumstances,
    explained,
    finding_sentence,
)
from nfq_guard.seqno import seq


def test_every_reason_has_a_meaning() -> None:
    assert set(REASONS) == set(Reason)


def test_every_reason_has_consequences() -> None:
    assert set(CONSEQUENCES) == set(Reason)


def test_every_cause_has_a_meaning() -> None:
    assert set(CAUSES) == set(Cause)


def test_every_bound_has_words() -> None:
    assert set(BOUND_WORDS) == BOUNDS


def test_a_finding_in_one_sentence() -> None:
    breach = Breach(Reason.ACK_OVER, seq(2), seq(1), 1)
    sentence = "ack 2 is 1 byte beyond 1, the last byte that the other side has sent"
    assert finding_sentence(Finding(Reason.ACK_OVER, breach)) == sentence
    assert finding_sentence(Finding(Reason.ACK_OVER, breach, "or not")) == f"{sentence}, or not"
    assert finding_sentence(Finding(Reason.NO_ENTRY, None, "an RST")) == "an RST"
    assert finding_sentence(Finding(Reason.NO_ENTRY)) == ""


def test_every_ignored_case_has_a_meaning() -> None:
    assert set(IGNORED) == set(Ignored)


@pytest.mark.parametrize(
    ("detail", "known", "words"),
    [
        ("rst without an entry", Circumstances(expired=True), "had expired before it came"),
        ("fin without an entry", Circumstances(expired=True, private=True), "untranslated twin"),
        ("rst without an entry", Circumstances(private=True), "untranslated twin"),
        ("syn+ack without an entry", Circumstances(seen=False), "the SYN took another path"),
        ("fin without an entry", Circumstances(seen=False), "began before conntrack watched"),
        ("rst without an entry", Circumstances(seen=True), "was flushed or is on another router"),
        ("ack without an entry", Circumstances(), "was flushed or is on another router"),
        ("data without an entry", Circumstances(seen=True), "second path of a multihomed"),
        ("rst without an entry", Circumstances(gone=True), "was deleted or flushed"),
        ("rst without an entry", Circumstances(gone=True), "shorter timeouts"),
        ("rst without an entry", Circumstances(gone=True, private=True), "untranslated twin"),
        ("syn+ack without an entry", Circumstances(private=True), "the SYN took another path"),
        ("syn+ack without an entry", Circumstances(), "its source was forged"),
        ("fin without an entry", Circumstances(seen=False), "as with a scan"),
        ("rst without an entry", Circumstances(private=True), "If this host translates"),
        (
            "rst without an entry",
            Circumstances(expired=True, private=True, twin=True),
            "cannot open one. It is the untranslated twin of a live flow, which has",
        ),
    ],
)
def test_causes_of_a_packet_without_an_entry(detail: str, known: Circumstances, words: str) -> None:
    text = explained(Finding(Reason.NO_ENTRY, None, detail), known)
    assert text.startswith("It belongs to no known flow")
    assert words in text


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ("original ack in SYN_SENT", "direct server return"),
        ("original fin in SYN_SENT2", "direct server return"),
        ("reply syn in ESTABLISHED", "begins at the other end"),
        ("original syn+ack in CLOSE_WAIT", "the SYN took another path"),
        ("original none in ESTABLISHED", "cannot occur in that state"),
        ("reply abort in HEARTBEAT_SENT", "does not answer it"),
    ],
)
def test_causes_of_a_wrong_transition(detail: str, words: str) -> None:
    assert words in explained(Finding(Reason.BAD_TRANSITION, None, detail), Circumstances())


@pytest.mark.parametrize(
    ("unanswered", "words"),
    [(True, "The answer to the SYN has not been seen"), (False, "Possible causes"), (None, "room")],
)
def test_data_beyond_the_window_of_a_flow_without_an_answer(
    unanswered: bool | None, words: str
) -> None:
    known = Circumstances(unanswered=unanswered)
    text = explained(Finding(Reason.SEQ_OVER), known)
    assert words in text
    assert ("window update" in text) is not (unanswered is True)


def test_an_answer_to_an_init_that_was_not_seen() -> None:
    finding = Finding(Reason.BAD_TAG, None, "answers an INIT that was not seen")
    assert "the INIT took another path" in explained(finding, Circumstances())


def test_other_reasons_mean_the_same_always() -> None:
    for reason in set(Reason) - {Reason.NO_ENTRY, Reason.BAD_TRANSITION}:
        known = Circumstances(expired=True, seen=True, private=True)
        assert explained(Finding(reason), known) == REASONS[reason].sentences


def test_an_option_has_its_command() -> None:
    """The texts are those of `why` and of events too, which have no capture to judge anew."""
    for meaning in REASONS.values():
        words = meaning.sentences.split()
        for place, word in enumerate(words):
            assert not word.startswith("--") or words[place + 1 : place + 2] == ["of"], word
