# SPDX-License-Identifier: MIT
"""Makes self-contained HTML pages from templates, whose values are never markup.

Jinja2 escapes every value. The page's content security policy allows no script but the page's own,
by its digest, and loads nothing.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from nfq_guard.errors import UnavailableError
from nfq_guard.names import visible

if TYPE_CHECKING:  # pages are not for the daemon, so jinja2 is not among what it needs
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES: Final = Path(__file__).parent / "templates"
# What could end a script element or begin a comment in one.
_SCRIPT_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


class _Page(NamedTuple):
    """What every page contains.

    Attributes:
        style: The style sheet.
        script: The script.
        script_source: The digest that lets the script run.
    """

    style: "Markup"
    script: "Markup"
    script_source: str


def jinja() -> ModuleType:
    """The package jinja2.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - see above
    except ImportError:
        raise UnavailableError(
            "pages need the package jinja2 (pip install 'nfq-guard[report]')"
        ) from None
    return jinja2


def markup(text: str) -> "Markup":
    """A text that templates do not escape: nothing in it may come from a recording."""
    from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2

    return Markup(text)  # noqa: S704 - by its contract


def render(name: str, values: Mapping[str, Any], folders: Sequence[Path] = ()) -> str:
    """A page.

    Args:
        name: Its template.
        values: What the template shows.
        folders: Where templates are, beside those of this package.
    """
    return _environment(tuple(folders)).get_template(name).render(values, page=_page())


def data_island(value: object) -> "Markup":
    """A value as JSON for the inside of a script element that is no program."""
    text = orjson.dumps(value).decode()
    for character, escape in _SCRIPT_ESCAPES.items():
        text = text.replace(character, escape)
    return markup(text)


def _finalize(value: object) -> object:
    """A value as the page shows it: of a text that is not markup, what controls it is visible."""
    return visible(value) if type(value) is str else value


@cache
def _environment(folders: tuple[Path, ...]) -> "Environment":
    jinja2 = jinja()
    made: Environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(_TEMPLATES), *map(str, folders)]),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return made


@cache
def _page() -> _Page:
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _Page(markup(style), markup(script), f"'sha256-{digest}'")
