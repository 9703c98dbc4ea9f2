# SPDX-License-Identifier: MIT
"""Errors for the operator, and the exit status of each.

A bad packet is a value (`wire.packet.Malformed`), not an error. Bugs are not converted into these
errors: they surface as the original exception.
"""

import errno
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

EXIT_OK: Final = 0
EXIT_NOT_FINE: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_RUNNING: Final = 3
EXIT_UNAVAILABLE: Final = 69
EXIT_BUSY: Final = 75
EXIT_NO_PRIVILEGE: Final = 77
# 128 plus SIGINT, the shell's convention.
EXIT_INTERRUPTED: Final = 130

EXIT_MEANINGS: Final = {
    EXIT_OK: "Success.",
    EXIT_NOT_FINE: (
        "What was checked is not fine, the daemon refused the request, the output could not be "
        "written, or memory, descriptors or processes are short."
    ),
    EXIT_USAGE: "Wrong usage, or a file with mistakes; each is printed with its place.",
    EXIT_NOT_RUNNING: "No daemon is running that could respond.",
    EXIT_UNAVAILABLE: "A kernel feature or a program is missing; the message names it.",
    EXIT_BUSY: "The queue belongs to another process; the message names it.",
    EXIT_NO_PRIVILEGE: "A privilege is missing; the message names it.",
    EXIT_INTERRUPTED: "Ctrl-C (SIGINT) ended it, also the daemon.",
}


# Of a message; longer than the keys and paths that occur.
_LONGEST_KEY: Final = 400


class NfqGuardError(Exception):
    """One line for the operator; `exit_status` is what the command ends with."""

    exit_status: ClassVar[int] = EXIT_NOT_FINE


class UsageError(NfqGuardError):
    """The command line, or a file named on it, is not what the command takes."""

    exit_status = EXIT_USAGE


class OutputError(NfqGuardError):
    """A file that the command writes cannot be written to its end; the message names it."""


class NotRunningError(NfqGuardError):
    """No daemon is running that could respond."""

    exit_status = EXIT_NOT_RUNNING


class UnavailableError(NfqGuardError):
    """A kernel feature or a program that is needed is missing; the message names it."""

    exit_status = EXIT_UNAVAILABLE


class BusyError(NfqGuardError):
    """The queue belongs to another process; the message names it."""

    exit_status = EXIT_BUSY


class PrivilegeError(NfqGuardError):
    """A privilege is missing; the message names it."""

    exit_status = EXIT_NO_PRIVILEGE


class ShortageError(UnavailableError):
    """Memory, descriptors or processes are short, of this process or of the host.

    Unlike without a kernel feature or a privilege, another attempt may succeed, so the exit status
    is one after which systemd restarts the daemon.
    """

    exit_status = EXIT_NOT_FINE


_SHORTAGES: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}
)
_NO_MEMORY: Final = "Cannot allocate memory"
# What Python says where the kernel said EAGAIN.
_NO_THREAD: Final = "can't start new thread"


def is_shortage(code: int | None) -> bool:
    """Whether this errno is a shortage, and no answer about features, privileges or files."""
    return code in _SHORTAGES


def shortage_in(error: BaseException) -> str:
    """The shortage that this exception is, wherever it was raised; empty if it is none.

    For the outermost handler, where any other exception is a bug.
    """
    if isinstance(error, OSError) and is_shortage(error.errno):
        return error.strerror or str(error)
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    return _NO_THREAD if isinstance(error, RuntimeError) and str(error) == _NO_THREAD else ""


def for_operator(
    kind: type[NfqGuardError], text: str, cause: OSError, *, more: str = ""
) -> NfqGuardError:
    """The error for the operator with the reason of `cause`: `kind`, or a shortage.

    Args:
        kind: The class of every other cause.
        text: What failed, before the reason.
        cause: What the kernel answered.
        more: Follows the reason.
    """
    chosen = ShortageError if is_shortage(cause.errno) else kind
    return chosen(f"{text}: {cause.strerror or cause}{more}")


class Mistake(NamedTuple):
    """One thing wrong with a configuration file.

    Attributes:
        key: Dotted path into the file, such as `policy.rule[2].reason`; empty for the whole file.
        expected: The values that are accepted.
        found: The value in the file, as the operator wrote it.
        line: The line of the file with that key, from 1; 0 where it is not known.
    """

    key: str
    expected: str
    found: str
    line: int = 0

    def __str__(self) -> str:
        """The mistake as `check` prints it, without the name of the file."""
        key = self.key if len(self.key) <= _LONGEST_KEY else self.key[:_LONGEST_KEY] + "..."
        where = f"{key}: " if key else ""
        at = f" (line {self.line})" if self.line else ""
        return f"{where}expected {self.expected}, found {self.found}{at}"


class ConfigError(NfqGuardError):
    """A configuration that cannot be used, with every mistake in it.

    Attributes:
        source: The file, as the operator named it.
        mistakes: All of them, in the order of the file where it is known.
    """

    exit_status = EXIT_USAGE

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        """Collect `mistakes` of `source`; there is at least one."""
        self.source = source
        self.mistakes = tuple(mistakes)
        said = "\n".join(f"{source}: {mistake}" for mistake in self.mistakes)
        # A path may have bytes that are no text, and events and responses hold text alone.
        super().__init__(said.encode("utf-8", "backslashreplace").decode())


class ConfigShortageError(ConfigError):
    """A configuration that cannot be read for now: a `ShortageError`, and no mistake."""

    exit_status = EXIT_NOT_FINE
