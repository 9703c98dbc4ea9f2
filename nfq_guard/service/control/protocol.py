# SPDX-License-Identifier: MIT
"""What a client of the control socket is told, at once or later."""

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """What a client is told.

    Attributes:
        good: Whether it went well.
        message: What there is to say, in JSON.
    """

    good: bool
    message: object


def ok(message: object) -> Answer:
    """It went well."""
    return Answer(good=True, message=message)


def no(why: str) -> Answer:
    """It did not."""
    return Answer(good=False, message=why)


Reply = Callable[[Answer], None]
"""Called once."""
