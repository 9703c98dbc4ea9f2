# SPDX-License-Identifier: MIT
"""Notices that files of the configuration have other content than before.

A ConfigMap of Kubernetes replaces its files with nobody to ask for a reload.
"""

from collections.abc import Mapping
from typing import final

from nfq_guard.errors import ConfigError
from nfq_guard.policyfile import ReadFile, read_file


@final
class ChangedFiles:
    """Compares files with what they held at the last look."""

    def __init__(self, read: ReadFile = read_file) -> None:
        """Read nothing before `look`.

        Args:
            read: Reads a file.
        """
        self._read = read
        self._seen: dict[str, bytes | None] = {}

    def look(self, loaded: Mapping[str, bytes]) -> bool:
        """Whether a file has changed since the last look; call it in a thread.

        A file that cannot be read counts as changed once, and again when it can be read.

        Args:
            loaded: The files of the configuration in force, with the content that was read then. A
                file that was not looked at before is compared with it.
        """
        now = {name: self._content(name) for name in loaded}
        changed = any(
            content != self._seen.get(name, loaded[name]) for name, content in now.items()
        )
        self._seen = now
        return changed

    def _content(self, name: str) -> bytes | None:
        try:
            return self._read(name)
        except ConfigError:
            return None
