# SPDX-License-Identifier: MIT
"""Builds the image's root without a container engine and runs a guard in it: `make container-test`.

Roots stay in the folder CONTAINER_DIR, by default ~/.cache/nfq-guard/container.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.deploy.test_kubernetes_kernel import guard_a_node
from tests.kernels.fetch import mirror
from tests.support.containerfile import build

_TREE: Final = Path(__file__).parents[2]
_FILE: Final = _TREE / "deploy" / "container" / "Containerfile"
_PLACE: Final = "~/.cache/nfq-guard/container"


def main() -> int:
    place = Path(os.environ.get("CONTAINER_DIR") or _PLACE).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    stage = build(_FILE, _TREE, place, mirror("trixie"))
    assert stage.entrypoint == ["nfq-guard"], "what the manifests for Kubernetes rely on"
    size = subprocess.run(
        ["du", "-sm", str(stage.root)], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    sys.stdout.write(f"container: the root has {size} MB\n")
    with tempfile.TemporaryDirectory() as folder:
        guard_a_node(Path(folder), root=stage.root)
    sys.stdout.write("container: prepared, guarded a flow, reloaded, stopped without a rule left\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
