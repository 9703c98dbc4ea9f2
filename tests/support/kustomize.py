# SPDX-License-Identifier: MIT
"""Renders the kustomizations of `deploy/kubernetes`, as `kustomize build` does.

Supports only what they use. `make manifests-check` compares it with the real program.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

KUBERNETES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"

Object = dict[str, Any]

_KINDS: Final = {
    "kustomize.config.k8s.io/v1beta1": "Kustomization",
    "kustomize.config.k8s.io/v1alpha1": "Component",
}
# Keys that identify an item of a list; other lists are replaced as a whole.
_MERGED_BY: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
_OF_THE_CLUSTER: Final = frozenset({"Namespace"})


def documents(path: Path) -> list[Object]:
    """The objects of a file."""
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one is not None]


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    return _build(folder, [])


def _build(folder: Path, objects: list[Object]) -> list[Object]:
    (top,) = documents(folder / "kustomization.yaml")
    assert _KINDS[top.pop("apiVersion")] == top.pop("kind")
    objects = list(objects)
    for name in top.pop("resources", ()):
        path = folder / name
        objects += build(path) if path.is_dir() else documents(path)
    for generator in top.pop("configMapGenerator", ()):
        objects.append(_config_map(folder, generator))
    for name in top.pop("components", ()):
        objects = _build(folder / name, objects)
    for patch in top.pop("patches", ()):
        objects = _patched(folder, objects, patch)
    suffix = top.pop("nameSuffix", "")
    namespace = top.pop("namespace", None)
    assert not top, f"{folder}: this reader does not know {sorted(top)}"
    for each in objects:
        each["metadata"]["name"] += suffix
        if namespace is not None and each["kind"] not in _OF_THE_CLUSTER:
            each["metadata"]["namespace"] = namespace
    return objects


def _config_map(folder: Path, generator: Object) -> Object:
    assert generator.pop("options") == {"disableNameSuffixHash": True}
    data = {name: (folder / name).read_text(encoding="utf-8") for name in generator.pop("files")}
    name = generator.pop("name")
    assert not generator
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _patched(folder: Path, objects: list[Object], patch: Object) -> list[Object]:
    (change,) = documents(folder / patch.pop("path"))
    target = patch.pop("target", None)
    assert not patch
    wanted: Callable[[Object], bool]
    if target is None:

        def wanted(each: Object) -> bool:
            return (each["kind"], each["metadata"]["name"]) == (
                change["kind"],
                change["metadata"]["name"],
            )

    else:
        kind = target.pop("kind")
        key, _, value = target.pop("labelSelector").partition("=")
        assert not target

        def wanted(each: Object) -> bool:
            return bool(
                each["kind"] == kind and each["metadata"].get("labels", {}).get(key) == value
            )

    assert any(map(wanted, objects)), f"{folder}: a patch of nothing"
    part = {key: value for key, value in change.items() if key != "metadata"}
    return [_merged(each, part) if wanted(each) else each for each in objects]


def _merged(old: Any, new: Any, key: str = "") -> Any:  # noqa: ANN401 - YAML
    if isinstance(old, dict) and isinstance(new, dict):
        result = copy.deepcopy(old)
        for name, value in new.items():
            result[name] = _merged(old[name], value, name) if name in old else copy.deepcopy(value)
        return result
    if isinstance(old, list) and isinstance(new, list) and key in _MERGED_BY:
        mark = _MERGED_BY[key]
        items: list[Object] = copy.deepcopy(old)
        places = {item[mark]: place for place, item in enumerate(items)}
        for item in new:
            if item[mark] in places:
                place = places[item[mark]]
                items[place] = _merged(items[place], item)
            else:
                items.append(copy.deepcopy(item))
        return items
    return copy.deepcopy(new)


def by_identity(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """The objects by kind and name, which must be unique."""
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found
