# SPDX-License-Identifier: MIT
"""The page of `replay --report`: the INVALID packets of captures, as `report` draws events."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import final

from nfq_guard.capture.reader import Capture
from nfq_guard.cli.options import is_same_file
from nfq_guard.cli.report import PRESETS
from nfq_guard.errors import UsageError
from nfq_guard.names import counted
from nfq_guard.policyfile import load_compiled
from nfq_guard.replay.outcome import Outcome
from nfq_guard.replay.page_events import page_event
from nfq_guard.replay.settings import ReplaySettings
from nfq_guard.report.html import jinja
from nfq_guard.report.page import write_page
from nfq_guard.report.summary import Summary, add_event
from nfq_guard.whatif.events import recorded
from nfq_guard.whatif.result import result
from nfq_guard.whatif.trial import Trial


def _problem(path: Path) -> int:
    """The error number with which a new file at `path` would fail; 0 for none."""
    try:
        if path.is_dir():
            return errno.EISDIR
        if not path.parent.is_dir():
            return errno.ENOENT
    except OSError as error:  # a name that is too long, or a directory that may not be entered
        return error.errno or errno.EIO
    return 0 if os.access(path.parent, os.W_OK) else errno.EACCES


@final
class ReplayPage:
    """Collects the contents of the page."""

    def __init__(self, path: Path, captures: Sequence[Capture], policy: str | None) -> None:
        """Write to `path`; try `policy`, or the presets without one.

        Raises:
            UsageError: The file is one of the captures.
            UnavailableError: The package jinja2 is not installed.
        """
        jinja()
        if any(is_same_file(path, capture.name) for capture in captures):
            raise UsageError(f"--report: {path} is an input file")
        # Otherwise it would be found out after a replay of hours.
        problem = _problem(path)
        if problem:
            raise UsageError(f"--report: {path}: cannot be written: {os.strerror(problem)}")
        self._path = path
        self._summary = Summary()
        self._trial = Trial(
            [load_compiled(one) for one in (PRESETS if policy is None else [policy])]
        )

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Add the INVALID packets among outcomes."""
        for outcome in outcomes:
            read = page_event(outcome)
            if read is not None:
                add_event(self._summary, read)
                for packets in recorded(read):
                    self._trial.take(packets)

    def write(self, name: str, settings: ReplaySettings, gaps: Sequence[str]) -> str:
        """Write the page of a whole replay.

        Args:
            name: The captures.
            settings: How they were replayed.
            gaps: Notes on what the captures lack.

        Returns:
            A short text about the page.
        """
        self._trial.end()
        doubt = settings.kernel_doubt or None
        trial = result(self._trial, name, "capture", None, settings.kernel.name, doubt)
        write_page(self._path, self._summary, title=name, trial=trial, gaps=gaps)
        packets = counted(self._summary.counts.packets, "INVALID packet")
        return f"{self._path}: {packets} in {counted(len(self._summary.flows), 'flow')}"
