# SPDX-License-Identifier: MIT
"""Detects changes in the contents of the configuration files.

Kubernetes replaces the files of a ConfigMap without a request for a reload.
"""

from collections.abc import Mapping
from typing import final

from nfq_guard.errors import ConfigError
from nfq_guard.policyfile import ReadFile, read_file


@final
class ChangedFiles:
    """Compares files with their contents at the last `look`."""

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
            loaded: The files of the configuration in force, with the contents that were read. A
                file that no earlier call compared is compared with these.
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
