# SPDX-License-Identifier: MIT
"""The root of the container image, built without a container engine.

Roots stay in the folder CONTAINER_DIR, by default ~/.cache/nfq-guard/container.
"""

import hashlib
import os
import shlex
from pathlib import Path
from typing import Final

from tests.kernels.fetch import mirror
from tests.support.containerfile import build, instructions

_TREE: Final = Path(__file__).parents[2]
_PLACE: Final = "~/.cache/nfq-guard/container"
CONTAINERFILE: Final = _TREE / "deploy" / "container" / "Containerfile"


def build_root() -> Path:
    """Carry the Containerfile out, which takes minutes, unless that was done with these files.

    Needs root.
    """
    place = Path(os.environ.get("CONTAINER_DIR") or _PLACE).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    made, digest = place / "made", _digest()
    if made.exists():
        root, of = made.read_text(encoding="utf-8").split("\n")
        if of == digest:
            return Path(root)
        made.unlink()
    root = str(build(CONTAINERFILE, _TREE, place, mirror("trixie")).root)
    made.write_text(f"{root}\n{digest}", encoding="utf-8")
    return Path(root)


def settings() -> dict[str, str]:
    """What the last instruction of each name says."""
    return dict(instructions(CONTAINERFILE.read_text(encoding="utf-8")))


def _digest() -> str:
    """Of the Containerfile and of all that it copies from the tree."""
    files = {CONTAINERFILE}
    for word, rest in instructions(CONTAINERFILE.read_text(encoding="utf-8")):
        if word == "COPY" and "--from=" not in rest:
            for name in shlex.split(rest)[:-1]:
                source = _TREE / name
                files.update(source.rglob("*") if source.is_dir() else (source,))
    found = hashlib.sha256()
    for file in sorted(files):
        if file.is_file() and file.suffix != ".pyc":
            found.update(f"{file.relative_to(_TREE)} {file.stat().st_size}\n".encode())
            found.update(file.read_bytes())
    return found.hexdigest()
