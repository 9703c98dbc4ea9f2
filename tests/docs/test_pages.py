# SPDX-License-Identifier: MIT
"""The pages of the documentation: links resolve, and commands and configurations work."""

import argparse
import importlib
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from nfq_guard.cli import parser_of
from nfq_guard.service.config import load_config
from tests.support import pictures, reasons_page

if find_spec("yaml") is None and not os.environ.get("CI"):
    pytest.skip("needs PyYAML", allow_module_level=True)

from tests.support import site_pages

TREE: Final = site_pages.TREE
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM: Final = "nfq-guard"
# Placeholders of the page.
_FORMS: Final = re.compile(r"[A-Z]{3,}|\.\.\.|\||\[")


def read(page: str) -> str:
    return (TREE / page).read_text(encoding="utf-8")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """The blocks of a language, with the page."""
    for page in site_pages.pages():
        for found in _BLOCK.finditer(read(page)):
            if found[1] == language:
                yield page, found[2]


def commands() -> Iterator[str]:
    """Each call of the program, without the rest of its line."""
    for _, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r" \| | > | && ", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["sudo"]:
                    del words[0]
                if words and Path(words[0]).name == _PROGRAM:
                    yield shlex.join(words[1:])


def inline_commands() -> Iterator[str]:
    """Calls in the middle of a sentence."""
    for page in site_pages.pages():
        for found in re.findall(rf"`(?:[^`\n]*\| )?{_PROGRAM} ([^`\n]+)`", read(page)):
            if not _FORMS.search(found):
                yield found


def test_each_command_is_one() -> None:
    lines = sorted({*commands()})
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(line)
        parser_of(words).parse_args(words)


def test_each_command_in_a_sentence_is_one() -> None:
    """Or the name of one, or of one of its options."""
    for line in sorted({*inline_commands()}):
        words = shlex.split(line)
        if words[-1].startswith("--"):
            known = parser_for(words[0])._option_string_actions
            assert all(word in known for word in words[1:] if word.startswith("-")), line
        elif any(word.startswith("-") for word in words):
            parser_of(words).parse_args(words)
        else:
            # Or the name of a command of a command, without what it takes.
            with pytest.raises(SystemExit) as ended:
                parser_of(words).parse_args([*words, "--help"])
            assert ended.value.code == 0, line


def parser_for(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(command)
    importlib.import_module(f"nfq_guard.cli.{command}").add_arguments(parser)
    return parser


def test_each_configuration_has_no_mistake(tmp_path: Path) -> None:
    found = 0
    for page, text in blocks("toml"):
        table = tomllib.loads(text)
        if "policy" in table and not table["policy"].keys() & {"include", "default"}:
            # A rule alone.
            head = '[policy]\ndefault = "allow"\n'
            text = text.replace("[[policy.rule]]", f"{head}[[policy.rule]]", 1)  # noqa: PLW2901 - completed
        file = tmp_path / "c.toml"
        file.write_text(text, encoding="utf-8")
        load_config(file)
        found += page.startswith("docs/")
    assert found > 8


def test_each_link_leads_somewhere() -> None:
    for page in site_pages.pages():
        for target, path in site_pages.links(page):
            assert (TREE / path).exists(), f"{page}: {target}"
            anchor = target.partition("#")[2]
            assert not anchor or anchor in site_pages.anchors(path), f"{page}: {target}"
        for anchor in re.findall(r"\]\(#([^)]+)\)", read(page)):
            assert anchor in site_pages.anchors(page), f"{page}: #{anchor}"


def test_each_page_of_the_tree_is_on_the_site() -> None:
    found = {str(path.relative_to(TREE)) for path in (TREE / "docs").rglob("*.md")}
    found |= {str(path.relative_to(TREE)) for path in (TREE / "deploy").rglob("*.md")}
    assert found <= set(site_pages.pages())


def test_the_page_of_reasons_is_that_of_the_glossary() -> None:
    assert reasons_page.PAGE.read_text(encoding="utf-8") == reasons_page.text(), (
        "run `make reference`"
    )


def test_pages_name_no_machine() -> None:
    for page in site_pages.pages():
        assert not re.search("/(root|home)/", read(page)), page


def test_pictures_are_those_of_the_lab_run() -> None:
    """`make pictures` makes each, and a page shows it."""
    there = {path.name for path in (TREE / "docs" / "images").iterdir()}
    shown = {
        name
        for page in site_pages.pages()
        for name in re.findall(r"!\[[^\]]+\]\(images/([\w.-]+)\)", read(page))
    }
    assert there == shown == set(pictures.SHOWN)
