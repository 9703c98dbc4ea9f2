# SPDX-License-Identifier: MIT
"""Writes the installed dependencies of the guard as CycloneDX 1.6 JSON: `make sbom`."""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import orjson
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS: Final = "nfq-guard"
EXTRAS: Final = ("lab", "report", "zstd")
# Licences of packages whose metadata have no expression, from their licence files.
_UNSTATED: Final = {"netfilterqueue": "MIT", "jinja2": "BSD-3-Clause"}


def licence_of(one: Distribution) -> str:
    """The SPDX expression of a package."""
    if "License-Expression" in one.metadata:
        return one.metadata["License-Expression"]
    return _UNSTATED[canonicalize_name(one.metadata["Name"])]


def needed(name: str, extras: tuple[str, ...] = ("",)) -> Iterator[Distribution]:
    """The installed packages that a package requires, once for each path of requirements."""
    for text in distribution(name).requires or ():
        wanted = Requirement(text)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": one}) for one in extras):
            continue
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        yield found
        yield from needed(wanted.name, tuple(wanted.extras) or ("",))


def components() -> list[dict[str, object]]:
    """The components, by name."""
    found = {canonicalize_name(one.metadata["Name"]): one for one in needed(OURS, ("", *EXTRAS))}
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{one.version}",
            "name": one.metadata["Name"],
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            "licenses": [{"expression": licence_of(one)}],
        }
        for name, one in sorted(found.items())
    ]


def bom() -> dict[str, object]:
    """The whole document, without times and random numbers: equal trees give equal documents."""
    ours = distribution(OURS)
    reference = f"pkg:pypi/{OURS}@{ours.version}"
    parts = components()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": reference,
                "name": OURS,
                "version": ours.version,
                "licenses": [{"expression": "MIT"}],
            }
        },
        "components": parts,
        "dependencies": [{"ref": reference, "dependsOn": [one["bom-ref"] for one in parts]}],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(orjson.dumps(bom(), option=orjson.OPT_INDENT_2) + b"\n")
    sys.stdout.write(f"wrote {target}\n")
