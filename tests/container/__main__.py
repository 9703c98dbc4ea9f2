# SPDX-License-Identifier: MIT
"""Builds the image without a container engine and runs a guard in it: `make container-test`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.container.image import build_root, settings
from tests.deploy.test_kubernetes_kernel import guard_a_node
from tests.support.root import require_root


def main() -> int:
    require_root("container")
    root = build_root()
    assert settings()["ENTRYPOINT"] == '["nfq-guard"]', "what the manifests for Kubernetes rely on"
    size = subprocess.run(
        ["du", "-sm", str(root)], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    sys.stdout.write(f"container: the root has {size} MB\n")
    with tempfile.TemporaryDirectory() as folder:
        guard_a_node(Path(folder), root=root)
    sys.stdout.write("container: prepared, guarded a flow, reloaded, stopped without a rule left\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
