# SPDX-License-Identifier: MIT
"""Validates `deploy/kubernetes` against the published schemas: `make manifests-check`.

If `kubectl` or `kustomize` is installed, its output is compared with that of `kustomize.py` too.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import yaml

from tests.support import chart
from tests.support.kustomize import KUBERNETES, Object, build, by_identity

_VALIDATE: Final = Path("build/manifests/bin/kubernetes-validate")
_VERSIONS: Final = [f"1.{minor}" for minor in range(30, 38)]
# Kinds of the Prometheus Operator are not in Kubernetes' schemas.
_OTHERS: Final = "monitoring.coreos.com/"


def main() -> int:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    sets = {path.name: build(path) for path in sorted((KUBERNETES / "overlays").iterdir())}
    failed = False
    for name, objects in (*sets.items(), ("chart", chart.render(values))):
        known = [each for each in objects if not each["apiVersion"].startswith(_OTHERS)]
        failed |= not _valid(name, known)
    return int(failed | (not _as_kustomize(sets)))


def _valid(name: str, objects: list[Object]) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(objects, file)
        file.flush()
        for version in _VERSIONS:
            done = subprocess.run(
                [_VALIDATE, "-k", version, "--strict", file.name],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.stderr.write(done.stdout + done.stderr)
                return False
    versions = f"{_VERSIONS[0]} to {_VERSIONS[-1]}"
    sys.stdout.write(f"{name}: {len(objects)} objects are valid in Kubernetes {versions}\n")
    return True


def _as_kustomize(sets: dict[str, list[Object]]) -> bool:
    if shutil.which("kustomize"):
        words = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        words = ["kubectl", "kustomize"]
    else:
        sys.stdout.write("not compared: neither kustomize nor kubectl is installed\n")
        return True
    for name, objects in sets.items():
        folder = KUBERNETES / "overlays" / name
        done = subprocess.run([*words, str(folder)], check=True, capture_output=True, text=True)
        if by_identity(list(yaml.safe_load_all(done.stdout))) != by_identity(objects):
            sys.stderr.write(f"{name}: {words[0]} renders something else\n")
            return False
    sys.stdout.write(f"{words[0]} renders the same\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
