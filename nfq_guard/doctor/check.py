# SPDX-License-Identifier: MIT
"""What the doctor says about one thing."""

from dataclasses import dataclass
from enum import StrEnum
from typing import final


class Status(StrEnum):
    """How bad it is: only a problem makes the command fail."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        id: Fixed name, such as `sysctl.be_liberal`; public API.
        status: How it is.
        what: One line: what was found, and what it means here.
        todo: One line: what to do; empty when there is nothing.
    """

    id: str
    status: Status
    what: str
    todo: str = ""


def ok(name: str, what: str) -> Check:
    """As it should be."""
    return Check(name, Status.OK, what)


def note(name: str, what: str, todo: str = "") -> Check:
    """Worth knowing."""
    return Check(name, Status.NOTE, what, todo)


def warning(name: str, what: str, todo: str) -> Check:
    """The guard works, but not on all that its operator thinks."""
    return Check(name, Status.WARNING, what, todo)


def problem(name: str, what: str, todo: str) -> Check:
    """The guard cannot do its work, or not what it says."""
    return Check(name, Status.PROBLEM, what, todo)
