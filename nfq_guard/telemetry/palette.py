# SPDX-License-Identifier: MIT
"""Text attributes of a terminal, and the meaning of colours in logs and commands."""

import os
from collections.abc import Callable
from enum import Enum
from typing import Final

from nfq_guard.flow import CtState
from nfq_guard.policy.decision import Action

_RESET: Final = "\x1b[0m"


class Style(Enum):
    """A text attribute, as its escape sequence."""

    BOLD = "\x1b[1m"
    DIM = "\x1b[2m"
    RED = "\x1b[31m"
    GREEN = "\x1b[32m"
    YELLOW = "\x1b[33m"
    BLUE = "\x1b[34m"
    MAGENTA = "\x1b[35m"
    CYAN = "\x1b[36m"


ACTION_STYLES: Final = {
    Action.DROP: Style.RED,
    Action.LOG: Style.YELLOW,
    Action.ALLOW: Style.GREEN,
    Action.HEAL: Style.MAGENTA,
}
CTSTATE_STYLES: Final = {
    CtState.INVALID: Style.RED,
    CtState.NEW: Style.GREEN,
    CtState.ESTABLISHED: Style.GREEN,
    CtState.RELATED: Style.CYAN,
    CtState.UNTRACKED: Style.CYAN,
}
LEVEL_STYLES: Final = {
    "error": Style.RED,
    "warning": Style.YELLOW,
    "info": Style.CYAN,
}


def styled(text: str, *styles: Style, control: Callable[[str], str] = str) -> str:
    """`text` in `styles`; unchanged without a text or a style.

    Args:
        text: What is shown.
        styles: How.
        control: Returns what is written for a control sequence.
    """
    if not (styles and text):
        return text
    return control("".join(style.value for style in styles)) + text + control(_RESET)


def takes_colour(*, terminal: bool) -> bool:
    """Whether output may be coloured: never with NO_COLOR, else always with FORCE_COLOR.

    CLICOLOR_FORCE, unless 0, is equivalent to FORCE_COLOR. Without these, output to a terminal is
    coloured unless the terminal is dumb or CLICOLOR is 0.
    """
    environment = os.environ
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR") or environment.get("CLICOLOR_FORCE", "0") not in {"", "0"}:
        return True
    return terminal and environment.get("TERM") != "dumb" and environment.get("CLICOLOR") != "0"


def choose_colour(when: str) -> None:
    """Override the environment with `always` or `never`; `auto` changes nothing.

    The choice is stored in the environment, so that workers inherit it.
    """
    if when == "always":
        os.environ.pop("NO_COLOR", None)
        os.environ["FORCE_COLOR"] = "1"
    elif when == "never":
        os.environ["NO_COLOR"] = "1"
