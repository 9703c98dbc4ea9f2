# SPDX-License-Identifier: MIT
"""The meaning of each reason, bound and ignored case, for readers new to them."""

from enum import StrEnum
from typing import Final, NamedTuple

from nfq_guard.conntrack.details import (
    AFTER_HEARTBEAT,
    ANSWERS_OTHER_SYN,
    ANSWERS_UNSEEN_SYN,
    GOES_ON_UNANSWERED,
    OPENS_FROM_OTHER_END,
    OTHER_INIT,
    SCTP_WITHOUT_ENTRY,
)
from nfq_guard.finding import Breach, Finding, Ignored, Reason
from nfq_guard.names import bytes_of


class Meaning(NamedTuple):
    """What a reason means.

    Attributes:
        phrase: A few words that complete "the packet ..." or name it.
        sentences: The full explanation, with the most frequent causes.
    """

    phrase: str
    sentences: str


class Consequences(NamedTuple):
    """The consequences of accepting a packet of a reason, and the recommended action.

    Attributes:
        translated: The harm where the flow is translated.
        untranslated: The harm where it is not.
        advice: The recommended action.
    """

    translated: str
    untranslated: str
    advice: str


class Circumstances(NamedTuple):
    """What is known about a packet's flow besides the finding; None means unknown.

    Attributes:
        expired: Whether its entry had expired.
        seen: Whether earlier packets of its flow were seen.
        private: Whether a private source sends to a global destination.
        gone: Whether its entry was there before, and should not have expired.
        twin: Whether a live flow has its exact state, under other addresses.
        unanswered: Whether no answer to the SYN of its flow was seen.
    """

    expired: bool | None = None
    seen: bool | None = None
    private: bool | None = None
    gone: bool | None = None
    twin: bool | None = None
    unanswered: bool | None = None


class Cause(StrEnum):
    """The causes behind a reason, for reasons that have several."""

    UNTRANSLATED = "untranslated"
    TWIN = "twin"
    SYN_ELSEWHERE = "syn-elsewhere"
    EXPIRED = "expired"
    GONE = "gone"
    BEGAN_BEFORE = "began-before"
    DIRECT_RETURN = "direct-return"
    UNANSWERED = "unanswered"
    OTHER_WAY = "other-way"
    OLDER_FLOW = "older-flow"
    SCTP_WITHOUT_ENTRY = "sctp-without-entry"
    HEARTBEAT_ALONE = "heartbeat-alone"
    NO_INIT = "no-init"


class BoundWords(NamedTuple):
    """The question that a bound answers, and the words for the numbers checked against it.

    Attributes:
        numeral: Its number in kernel.md 1.6.
        question: A question; yes means that the bound holds.
        actual: Name of the segment's number.
        outside: The side of the limit on which that number breaks the bound.
        limit: What the limit is.
    """

    numeral: str
    question: str
    actual: str
    outside: str
    limit: str


REASONS: Final = {
    Reason.SEQ_OVER: Meaning(
        "data beyond the window that the receiver offered",
        "The sender went past the last byte that the receiver had offered room for. Possible "
        "causes: conntrack missed a window update that took another path, or the segment belongs "
        "to another connection between the same ports.",
    ),
    Reason.ACK_OVER: Meaning(
        "acknowledges data that the other side has not sent",
        "It acknowledges data that conntrack has not seen the other side send. Possible "
        "causes: that data took another path, or was in a segment that was itself INVALID; or an "
        "earlier forged segment has moved the window.",
    ),
    Reason.SEQ_UNDER: Meaning(
        "old data, below the window (kernels before 6.1)",
        "All of its data is older than one window, as in a late retransmission. The "
        "receiver would discard it and send an ACK; kernels before 6.1 call it INVALID, and a NAT "
        "host then forwards it untranslated.",
    ),
    Reason.ACK_UNDER: Meaning(
        "an acknowledgement below the window (kernels before 6.1)",
        "Its acknowledgement is older than any window of this flow, as in an ACK that the network "
        "has delayed. Kernels before 6.1 call it INVALID.",
    ),
    Reason.RST_OUTSIDE: Meaning(
        "an RST below what was acknowledged already",
        "The other side has acknowledged bytes beyond this RST already, so its receiver would "
        "not accept it either: it is a late answer to an old segment, or forged. Right after a SYN "
        "that conntrack ignored, an RST is checked against the window alone, and replaces that SYN "
        "in the entry: one that breaks both bounds may be INVALID for either.",
    ),
    Reason.BAD_TRANSITION: Meaning(
        "does not fit the state of its flow",
        "Such a segment cannot occur in that state. Possible causes: conntrack sees one direction "
        "only, or an old segment of an earlier connection arrives.",
    ),
    Reason.NO_ENTRY: Meaning(
        "belongs to no known flow and cannot open one",
        "It belongs to no known flow, and a packet of its kind cannot open one. Possible causes: "
        "the entry has expired (by default CLOSE lasts 10 s, LAST_ACK 30 s, TIME_WAIT 120 s), was "
        "flushed or is on another router; the SYN took another path; or there is no connection, "
        "as with a scan or the answer to a forged SYN.",
    ),
    Reason.BAD_FLAGS: Meaning(
        "TCP flags that contradict each other",
        "No TCP implementation sends this combination of flags; scanners do.",
    ),
    Reason.BAD_CHECKSUM: Meaning(
        "the checksum does not match",
        "Its checksum does not match: it was damaged in transit, or computed wrongly. A "
        "capture on the host that sent it also shows checksums that the NIC had yet to compute: "
        "see --checksum of replay.",
    ),
    Reason.BAD_TAG: Meaning(
        "the verification tag of another SCTP association",
        "Its verification tag is not the one that the two ends agreed on, and its receiver would "
        "discard it (RFC 9260 8.5): it belongs to an earlier association between the same ports, "
        "its sender has not seen the association, or it is forged.",
    ),
    Reason.MALFORMED: Meaning(
        "headers that contradict themselves",
        "Its headers contradict themselves.",
    ),
    Reason.ICMP_UNRELATED: Meaning(
        "an ICMP error about an unknown flow",
        "It is an ICMP error about a packet of an unknown flow: no host here sent that packet, it "
        "took another path, or the entry has expired or was flushed.",
    ),
    Reason.ICMP_MISMATCH: Meaning(
        "an ICMP error sent to a host other than the quoted sender",
        "It is an ICMP error about a packet of a known flow, but goes to a host other than the "
        "one that sent the packet.",
    ),
    Reason.RACED: Meaning(
        "fits by the time of the lookup: other packets came between",
        "It fits the window that the flow had by the time of the lookup.",
    ),
    Reason.UNSUPPORTED: Meaning(
        "cannot be judged: no evidence, or no diagnosis for the protocol",
        "Nothing more can be said about it.",
    ),
}

_ESCAPES: Final = (
    "It leaves with the wrong addresses. A host that gets it has no such connection and answers "
    "with an RST, which ends the healthy one."
)
_NO_HARM: Final = "None: its receiver does its own checks, and discards it if they fail."
_MEANWHILE: Final = (
    "Until then drop it where the flow is translated, and allow it elsewhere, as the default "
    "policy does."
)
_OLD: Final = (
    "Drop it where the flow is translated: TCP retransmits what is needed. Elsewhere nothing is "
    "broken as long as the connection goes on. Kernels from 6.1 on do not call it INVALID any more."
)
_FIND_THE_SENDER: Final = "If there are many, find who sends them."

CONSEQUENCES: Final = {
    Reason.SEQ_OVER: Consequences(
        _ESCAPES,
        _NO_HARM,
        "Check that both directions of the flow pass this host, and that no second router, offload "
        f"or flowtable takes packets past conntrack. {_MEANWHILE}",
    ),
    Reason.ACK_OVER: Consequences(
        _ESCAPES,
        _NO_HARM,
        "Check that both directions of the flow pass this host, and whether packets of the other "
        f"side were INVALID before. {_MEANWHILE}",
    ),
    Reason.SEQ_UNDER: Consequences(_ESCAPES, _NO_HARM, _OLD),
    Reason.ACK_UNDER: Consequences(_ESCAPES, _NO_HARM, _OLD),
    Reason.RST_OUTSIDE: Consequences(
        "It leaves with an address that translation should hide. Its receiver has no such "
        "connection, and nothing answers an RST.",
        "None: its receiver does not accept it.",
        "Drop it where the flow is translated; elsewhere its receiver discards it. Many of them "
        "from one source are forged: find who sends them.",
    ),
    Reason.BAD_TRANSITION: Consequences(
        _ESCAPES,
        "None where the endpoints see the whole connection: only conntrack misses a direction. "
        "A drop would block a healthy connection.",
        "Check that both directions of the flow pass this host, and whether ports are used again "
        f"while an old entry is left (`conntrack -L`). {_MEANWHILE}",
    ),
    Reason.NO_ENTRY: Consequences(
        "Conntrack does not know the flow, so the guard cannot either. If a translation has "
        "expired, the packet leaves with the inner address.",
        "None: late FINs and RSTs close what is left of the connection at their receiver.",
        "Check for a second router, for `conntrack -F` and `-D`, and for idle times longer than "
        "the timeouts (`net.netfilter.nf_conntrack_tcp_timeout_*`): raise these or send "
        "keepalives if healthy connections have many of them. Include `preset:no-leak` in the "
        "policy of a host that masquerades; otherwise allow it.",
    ),
    Reason.BAD_FLAGS: Consequences(
        "As without translation.",
        "None beyond what a scan learns.",
        f"Drop it. {_FIND_THE_SENDER}",
    ),
    Reason.BAD_CHECKSUM: Consequences(
        "As without translation.",
        "None: its receiver discards it, and TCP retransmits it.",
        "Drop it. If there are many, look for the cable, NIC, driver or tunnel that damages "
        "packets; on a virtual machine, for one that does not finish checksums (`ethtool -K "
        "DEVICE tx off` shows it).",
    ),
    Reason.BAD_TAG: Consequences(
        "It leaves with the wrong addresses; its receiver answers an unknown association with "
        "an ABORT that carries the wrong tag, or discards it.",
        _NO_HARM,
        "Drop it where the flow is translated; elsewhere its receiver discards it. "
        f"{_FIND_THE_SENDER}",
    ),
    Reason.MALFORMED: Consequences(
        "As without translation.", _NO_HARM, f"Drop it. {_FIND_THE_SENDER}"
    ),
    Reason.ICMP_UNRELATED: Consequences(
        "Conntrack does not know the flow, so the error is not translated and means nothing to "
        "its receiver.",
        "A drop may stop path-MTU discovery of a flow that conntrack does not know.",
        "Allow it: path-MTU discovery of a flow that is not tracked may need it.",
    ),
    Reason.ICMP_MISMATCH: Consequences(
        "As without translation.",
        "None: its receiver has no socket for it.",
        f"Allow it. {_FIND_THE_SENDER}",
    ),
    Reason.RACED: Consequences(
        _ESCAPES,
        "None.",
        "Drop it where the flow is translated: it is retransmitted, and then fits. Otherwise "
        "nothing needs to be done.",
    ),
    Reason.UNSUPPORTED: Consequences(
        _ESCAPES,
        "Unknown.",
        "See which evidence there is (`nfq-guard status`, `nfq-guard doctor`); `on_unknown` of the "
        "policy decides.",
    ),
}

BOUND_WORDS: Final = {
    Reason.SEQ_OVER: BoundWords(
        "I",
        "Does it begin where the receiver has offered room?",
        "seq",
        "beyond",
        "the last byte that the receiver agreed to take",
    ),
    Reason.SEQ_UNDER: BoundWords(
        "II",
        "Does it end within one window of what was sent last?",
        "end",
        "before",
        "the sender's highest end less the receiver's window",
    ),
    Reason.ACK_OVER: BoundWords(
        "III",
        "Does it acknowledge only what was sent?",
        "ack",
        "beyond",
        "the last byte that the other side has sent",
    ),
    Reason.ACK_UNDER: BoundWords(
        "IV",
        "Is its acknowledgement recent enough?",
        "ack",
        "before",
        "the oldest acknowledgement that still passes",
    ),
    Reason.RST_OUTSIDE: BoundWords(
        "RST",
        "Does it come after what was acknowledged?",
        "seq",
        "before",
        "what the other side has acknowledged already",
    ),
}

IGNORED: Final = {
    Ignored.OVERSHOOT: (
        "It goes beyond the room that the receiver offered, by less than one window. From kernel "
        "6.1 on conntrack passes it with its flow but does not take it into account."
    ),
    Ignored.SEQ_UNDER: (
        "All of its data is old: a late retransmission. From kernel 6.1 on conntrack passes it "
        "with its flow but does not take it into account."
    ),
    Ignored.ACK_UNDER: (
        "Its acknowledgement is older than any window. From kernel 6.1 on conntrack passes it "
        "with its flow but does not take it into account."
    ),
    Ignored.STATE: (
        "In this state only the answer to it shows what it means, so conntrack passes it, "
        "remembers it, and checks no window."
    ),
    Ignored.CHALLENGE_ACK: (
        "It is a challenge ACK, the answer to a late SYN; it does not close the flow."
    ),
}

CAUSES: Final = {
    Cause.UNTRANSLATED: Meaning(
        "from a private source to a global destination",
        "Its source is private and its destination is not. If this host translates that source, "
        "the translation of its flow has expired or was deleted, or it is the untranslated twin "
        "of a live flow that is known by other addresses.",
    ),
    Cause.TWIN: Meaning(
        "the untranslated twin of a live flow",
        "It is the untranslated twin of a live flow, which has its exact state under other "
        "addresses.",
    ),
    Cause.SYN_ELSEWHERE: Meaning(
        "answers a SYN that conntrack does not know",
        "It answers a SYN that conntrack does not know: the SYN took another path, as with "
        "asymmetric routes, its entry was flushed in between, or nobody here sent it: its source "
        "was forged.",
    ),
    Cause.EXPIRED: Meaning(
        "its flow was last seen longer ago than its entry lasts",
        "Its flow was last seen longer ago than an entry in its state lasts: the entry had expired "
        "before it came.",
    ),
    Cause.GONE: Meaning(
        "its entry went before the default timeout",
        "The entry of its flow was there when the packet before it came, and that was too recent "
        "for it to expire in its state by default: it was deleted or flushed, the flow has closed "
        "since, or this host has shorter timeouts.",
    ),
    Cause.BEGAN_BEFORE: Meaning(
        "no earlier packet of its flow was seen",
        "No earlier packet of its flow was seen: the connection began before conntrack watched it, "
        "was flushed, or was handed over by a router that failed, its other packets take another "
        "path, or there is no connection, as with a scan.",
    ),
    Cause.DIRECT_RETURN: Meaning(
        "no answer to the SYN was seen, yet the client continues",
        "The answer to the SYN has not been seen, yet the client continues as if it had. "
        "Either answers take another path, as with direct server return or asymmetric routes, or "
        "it belongs to an older connection between the same ports.",
    ),
    Cause.UNANSWERED: Meaning(
        "no answer to the SYN was seen, so no room is known",
        "The answer to the SYN has not been seen, so conntrack knows of no room beyond the SYN. "
        "Either answers take another path, as with direct server return or asymmetric routes, and "
        "the connection has gone on, or the segment does not belong to this connection.",
    ),
    Cause.OTHER_WAY: Meaning(
        "a new connection from the other end",
        "The known flow began in the other direction: a new connection between the same ports "
        "begins at the other end while the entry of an older one is left, or the SYN is forged.",
    ),
    Cause.OLDER_FLOW: Meaning(
        "answers a SYN that was not seen, and an older entry is left",
        "It answers a SYN from the other end that conntrack has not seen, while the entry of "
        "another connection between the same ports is left: the SYN took another path, or its "
        "source was forged.",
    ),
    Cause.SCTP_WITHOUT_ENTRY: Meaning(
        "no entry of its association, or another path of it",
        "Only an INIT, a heartbeat or a SHUTDOWN ACK opens a flow of SCTP. Its entry has expired "
        "(nf_conntrack_sctp_timeout_*, 210 s without a packet while established), was flushed or "
        "is on another router; or its INIT took another path, as the second path of a multihomed "
        "association does until its first heartbeat.",
    ),
    Cause.HEARTBEAT_ALONE: Meaning(
        "the answer to a heartbeat took another path",
        "A heartbeat opened the flow, and such a chunk does not answer it: the answer took another "
        "path, or the two ends share no association any more.",
    ),
    Cause.NO_INIT: Meaning(
        "its INIT took another path",
        "It answers an INIT that conntrack has not seen: the INIT took another path, or another "
        "one has followed it.",
    ),
}

_CANNOT_OPEN: Final = "It belongs to no known flow, and a packet of its kind cannot open one."


def explained(finding: Finding, known: Circumstances) -> str:
    """The meaning of a reason for one packet, with the cause if known."""
    cause = cause_of(finding, known)
    if cause is None:
        return REASONS[finding.reason].sentences
    sentences = CAUSES[cause].sentences
    if finding.reason is not Reason.NO_ENTRY:
        return sentences
    if cause in {Cause.EXPIRED, Cause.GONE} and known.private:
        sentences = f"{sentences} {CAUSES[Cause.UNTRANSLATED].sentences}"
    return f"{_CANNOT_OPEN} {sentences}"


def cause_of(finding: Finding, known: Circumstances) -> Cause | None:
    """The cause behind the reason; None if unknown."""
    if finding.reason is Reason.NO_ENTRY:
        return _cause_without_entry(finding.detail, known)
    if finding.reason is Reason.BAD_TAG and finding.detail == OTHER_INIT:
        return Cause.NO_INIT
    if finding.reason is Reason.BAD_TRANSITION:
        return _cause_of_transition(finding.detail)
    if finding.reason is Reason.SEQ_OVER and known.unanswered:
        return Cause.UNANSWERED
    return None


def _cause_without_entry(detail: str, known: Circumstances) -> Cause | None:
    if known.twin:
        return Cause.TWIN
    if known.expired:
        return Cause.EXPIRED
    if known.gone:
        return Cause.GONE
    if detail in ANSWERS_UNSEEN_SYN:
        return Cause.SYN_ELSEWHERE
    if known.private:
        return Cause.UNTRANSLATED
    if detail in SCTP_WITHOUT_ENTRY:
        return Cause.SCTP_WITHOUT_ENTRY
    return Cause.BEGAN_BEFORE if known.seen is False else None


def _cause_of_transition(detail: str) -> Cause | None:
    if detail in GOES_ON_UNANSWERED:
        return Cause.DIRECT_RETURN
    if detail in OPENS_FROM_OTHER_END:
        return Cause.OTHER_WAY
    if detail in AFTER_HEARTBEAT:
        return Cause.HEARTBEAT_ALONE
    return Cause.OLDER_FLOW if detail in ANSWERS_OTHER_SYN else None


def finding_sentence(finding: Finding) -> str:
    """Why a packet is INVALID, without the reason's name; may be empty."""
    sentence = "" if finding.breach is None else _breach_sentence(finding.breach)
    return ", ".join(filter(None, (sentence, finding.detail)))


def _breach_sentence(breach: Breach) -> str:
    """The proof in one sentence."""
    words = BOUND_WORDS[breach.bound]
    distance = bytes_of(breach.distance)
    where = f"{distance} {words.outside} {breach.limit}"
    return f"{words.actual} {breach.actual} is {where}, {words.limit}"
