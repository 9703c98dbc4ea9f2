# SPDX-License-Identifier: MIT
"""The seccomp profile of the container: the system calls that the unit lets the daemon make.

`python -m tests.support.seccomp_profile` writes it, from the groups of this host's systemd.
"""

import json
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

_TREE: Final = Path(__file__).parents[2]
_UNIT: Final = _TREE / "systemd" / "nfq-guard.service"
PROFILE: Final = _TREE / "deploy" / "container" / "seccomp.json"
# The daemon starts as root there. It gives up capabilities, and owns what it makes.
FOR_ROOT: Final = frozenset({"capset", "chown", "fchown", "fchownat", "lchown"})
_FILTER: Final = "SystemCallFilter="


def allowed() -> list[str]:
    """The names of the system calls, in order."""
    names: set[str] = set()
    for line in _UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith(_FILTER):
            words = line.removeprefix(_FILTER)
            listed = {name for word in shlex.split(words.lstrip("~")) for name in _expand(word)}
            names = names - listed if words.startswith("~") else names | listed
    return sorted(names | FOR_ROOT)


@cache
def _expand(word: str) -> frozenset[str]:
    if not word.startswith("@"):
        return frozenset((word,))
    printed = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], check=True, capture_output=True, text=True
    ).stdout
    parts = [line.strip() for line in printed.splitlines()[1:]]
    return frozenset(
        name for part in parts if part and not part.startswith("#") for name in _expand(part)
    )


def render() -> str:
    """The file, as container runtimes read it."""
    calls = {"names": allowed(), "action": "SCMP_ACT_ALLOW"}
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [calls]}, indent=2) + "\n"


if __name__ == "__main__":
    PROFILE.write_text(render(), encoding="ascii")
