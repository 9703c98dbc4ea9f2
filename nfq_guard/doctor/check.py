# SPDX-License-Identifier: MIT
"""The result of one check of the doctor."""

from dataclasses import dataclass
from enum import StrEnum
from typing import final


class Status(StrEnum):
    """Severity of a result; only `PROBLEM` makes the command fail."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One result.

    Attributes:
        id: Fixed name, such as `sysctl.be_liberal`; public API.
        status: Severity.
        what: One line: what was found, and what it means on this host.
        todo: One line: the recommended action; empty if none is needed.
    """

    id: str
    status: Status
    what: str
    todo: str = ""


def ok(name: str, what: str) -> Check:
    """Nothing to do."""
    return Check(name, Status.OK, what)


def note(name: str, what: str, todo: str = "") -> Check:
    """Worth knowing."""
    return Check(name, Status.NOTE, what, todo)


def warning(name: str, what: str, todo: str) -> Check:
    """The guard works, but does not see or decide all packets that its operator expects."""
    return Check(name, Status.WARNING, what, todo)


def problem(name: str, what: str, todo: str) -> Check:
    """The guard cannot work here, or its verdicts have no effect."""
    return Check(name, Status.PROBLEM, what, todo)
