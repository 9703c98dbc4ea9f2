# SPDX-License-Identifier: MIT
"""Writes docs/reasons.md from the glossary: `make reference`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nfq_guard.finding import Reason
from nfq_guard.glossary import BOUND_WORDS, CONSEQUENCES, REASONS
from tests.support.reason_traces import OPEN, REASON_TRACES

PAGE: Final = Path(__file__).parents[2] / "docs" / "reasons.md"
_HEAD: Final = """# Why a packet is INVALID

The event of a packet has one of these reasons. This page explains what each means, the harm that
such a packet does if it passes, and what to do about it.

Some have a trace whose last segment is the INVALID one: `>` is the direction of the SYN, sequence
numbers are relative to the first of each side, and flags are letters, with `.` for ACK. A test
sends these segments through the running kernel and compares the reason in its log. Traces that
begin with a line of dots continue this connection:

```
{open}
```

| reason | the packet |
|---|---|
{rows}
"""


def text() -> str:
    """The page."""
    rows = "\n".join(f"| [{name}](#{name}) | {REASONS[name].phrase} |" for name in Reason)
    head = _HEAD.format(open="\n".join(OPEN), rows=rows)
    return head + "".join("\n".join(_section(name)) for name in Reason)


def _section(name: Reason) -> Iterator[str]:
    yield f"\n## {name}\n"
    yield f"{REASONS[name].sentences}\n"
    if name in BOUND_WORDS:
        words = BOUND_WORDS[name]
        yield (
            f"Bound {words.numeral}: *{words.question}* Its {words.actual} is {words.outside} "
            f"{words.limit}.\n"
        )
    found = CONSEQUENCES[name]
    yield f"- **If it passes, and its flow is translated:** {found.translated}"
    yield f"- **If its flow is not translated:** {found.untranslated}"
    yield f"- **What to do:** {found.advice}\n"
    if name in REASON_TRACES:
        lines = REASON_TRACES[name][0]
        if lines[: len(OPEN)] == OPEN:
            lines = ("...", *lines[len(OPEN) :])
        yield "```\n" + "\n".join(lines) + "\n```\n"
