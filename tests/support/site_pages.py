# SPDX-License-Identifier: MIT
"""Writes the pages of the documentation site to build/site/pages: `make docs`.

The pages keep their paths, so that their links work in a checkout too. A link to a folder leads to
its README or to its first page, and one to a file that is not a page leads to a copy of it.
"""

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

TREE: Final = Path(__file__).parents[2]
CONFIG: Final = TREE / "mkdocs.yml"
LINK: Final = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
_IMAGE: Final = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_STYLE: Final = """\
/* At least 12 px; and the last column, which explains, is wide enough to be read on a phone. */
.md-typeset table:not([class]) code { font-size: .6rem; }
.md-typeset table:not([class]) td:first-child code { white-space: nowrap; }
.md-typeset table:not([class]) td:last-child:not(:first-child) { min-width: 14rem; }
"""
# The first page of a folder without a README.
_FIRST: Final = {"docs/reference": "docs/reference/settings.md"}


@cache
def pages() -> tuple[str, ...]:
    """The paths of all pages, in the order of the navigation."""
    # The part before it refers to a function of another package, which a YAML parser would refuse.
    _, _, nav = CONFIG.read_text(encoding="utf-8").partition("\nnav:\n")
    return tuple(_leaves(yaml.safe_load(nav)))


def _leaves(value: Any) -> Iterator[str]:  # noqa: ANN401 - YAML
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    else:
        for each in value:
            yield from _leaves(each)


def links(page: str) -> Iterator[tuple[str, str]]:
    """The links of a page into the tree: as written, and as a path from the root of the tree."""
    text = _FENCE.sub("", (TREE / page).read_text(encoding="utf-8"))
    for target in (*LINK.findall(text), *_IMAGE.findall(text)):
        if "://" not in target and not target.startswith("#"):
            path = (TREE / page).parent / target.partition("#")[0]
            yield target, str(path.resolve().relative_to(TREE))


@cache
def anchors(page: str) -> set[str]:
    """The anchors of the headings of a page."""
    text = _FENCE.sub("", (TREE / page).read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def lay_out(place: Path) -> None:
    """Write all pages, and the files that they link to."""
    shutil.rmtree(place, ignore_errors=True)
    shown = set(pages())
    for page in shown:
        text = (TREE / page).read_text(encoding="utf-8")
        for target, named in links(page):
            path = named
            if (TREE / named).is_dir():
                path = _FIRST.get(named, f"{named}/README.md")
                text = text.replace(f"]({target})", f"]({'../' * page.count('/')}{path})")
            if path not in shown:
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(TREE / path, place / path)
        (place / page).parent.mkdir(parents=True, exist_ok=True)
        (place / page).write_text(text, encoding="utf-8")
    (place / "site.css").write_text(_STYLE, encoding="ascii")


if __name__ == "__main__":
    lay_out(TREE / "build" / "site" / "pages")
