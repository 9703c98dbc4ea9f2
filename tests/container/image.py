# SPDX-License-Identifier: MIT
"""The root of the container image, built without a container engine.

Roots stay in the folder CONTAINER_DIR, by default ~/.cache/nfq-guard/container.
"""

import os
from pathlib import Path
from typing import Final

from tests.kernels.fetch import mirror
from tests.support.containerfile import Stage, build

_TREE: Final = Path(__file__).parents[2]
_FILE: Final = _TREE / "deploy" / "container" / "Containerfile"
_PLACE: Final = "~/.cache/nfq-guard/container"


def build_root() -> Stage:
    """Carry the Containerfile out, which takes minutes. Needs root."""
    place = Path(os.environ.get("CONTAINER_DIR") or _PLACE).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    return build(_FILE, _TREE, place, mirror("trixie"))
