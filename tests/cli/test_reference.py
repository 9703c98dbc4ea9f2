# SPDX-License-Identifier: MIT
"""The pages below docs/reference/ are those that the code generates."""

import argparse
import importlib
import re
from collections.abc import Iterator

import pytest

from nfq_guard import errors
from nfq_guard.cli import COMMANDS
from tests.support.reference import CATALOGUE, DIRECTORY, catalogue, pages


@pytest.mark.parametrize("name", pages())
def test_page_is_that_of_the_code(name: str) -> None:
    assert (DIRECTORY / name).read_text(encoding="utf-8") == pages()[name], "run `make reference`"


def test_catalogue_is_that_of_the_code() -> None:
    assert CATALOGUE.read_text(encoding="utf-8") == catalogue(), "run `make reference`"


def test_no_other_page() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == set(pages())


def test_every_exit_status_has_a_meaning() -> None:
    named = {
        value
        for name, value in vars(errors).items()
        if name.startswith("EXIT_") and isinstance(value, int)
    }
    assert set(errors.EXIT_MEANINGS) == named


def with_json() -> Iterator[str]:
    """Every command that has `--format json`, with its action where it has several."""
    for name in COMMANDS:
        parser = argparse.ArgumentParser(name)
        importlib.import_module(f"nfq_guard.cli.{name}").add_arguments(parser)
        yield from with_json_of(name, parser)


def with_json_of(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    options = {action.dest: action for action in parser._actions}
    action = options.get("action")
    if isinstance(action, argparse._SubParsersAction):
        for each, sub in action.choices.items():
            yield from with_json_of(f"{name} {each}", sub)
    elif "format" in options:
        yield from (f"{name} {each}" for each in action.choices or ()) if action else (name,)


@pytest.mark.parametrize("command", [*with_json()])
def test_the_json_of_each_command_is_described(command: str) -> None:
    assert f"`{command} --format json`" in pages()["json.md"]


def test_the_headings_of_json_differ() -> None:
    headings = re.findall("^## (.*)$", pages()["json.md"], re.MULTILINE)
    assert len(headings) == len(set(headings)) > 20


@pytest.mark.parametrize("name", pages())
def test_no_name_of_the_code_is_in_a_page(name: str) -> None:
    assert not re.findall(r"`\w+(?:\.\w+)*\.[A-Z]\w+`|## \w+[a-z][A-Z]|Record\b", pages()[name])
