# SPDX-License-Identifier: MIT
"""docs/dependencies.md names every package that the guard runs with, and its licence."""

import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import sbom

TREE = Path(__file__).parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def rows(heading: str) -> list[list[str]]:
    page = (TREE / "docs/dependencies.md").read_text(encoding="utf-8")
    part = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_the_daemon_needs_what_the_page_says() -> None:
    assert {canonicalize_name(row[0]) for row in rows("The daemon and its commands")} == names(
        PROJECT["dependencies"]
    )


def test_the_extras_need_what_the_page_says() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == set(sbom.EXTRAS)
    for extra, wanted in extras.items():
        named = {canonicalize_name(row[1]) for row in rows("Extras") if row[0] == extra}
        assert named >= names(wanted)


def test_licences_are_those_that_the_packages_state() -> None:
    told = rows("The daemon and its commands") + [row[1:] for row in rows("Extras")]
    for name, licence, reason in told:
        if name == "zstandard" and sys.version_info >= (3, 14):
            continue  # not installed: Python reads zstd itself
        assert licence == sbom.licence_of(distribution(name))
        assert reason


def test_the_bill_of_materials_names_them_all() -> None:
    bom = sbom.bom()
    parts = sbom.components()
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    listed = {canonicalize_name(str(one["name"])) for one in parts}
    told = {canonicalize_name(row[0]) for row in rows("The daemon and its commands")}
    told |= {canonicalize_name(row[1]) for row in rows("Extras")}
    # Python 3.14 reads zstd itself.
    assert listed | {"zstandard"} == told | {"zstandard"}
    assert sbom.bom() == bom
