# SPDX-License-Identifier: MIT
"""Generates shell completion from the parser of the command line (`make reference`)."""

import argparse
from collections.abc import Iterator
from typing import Final

from nfq_guard.cli import COMMANDS, parser_of
from nfq_guard.cli.parser import arguments, subparsers

# The shells, each with the file below share/ where it searches for our completion.
FILES: Final = {
    "bash": "bash-completion/completions/nfq-guard",
    "zsh": "zsh/site-functions/_nfq-guard",
    "fish": "fish/vendor_completions.d/nfq-guard.fish",
}
# Metavars in the help that mean a file and a directory.
_OF_FILES: Final = frozenset({"FILE", "PATH", "CAPTURE", "EVENTS", "EVENTS|CAPTURE"})
_OF_DIRECTORIES: Final = frozenset({"DIR"})


def completions() -> dict[str, str]:
    """The completion of each shell, by its file below share/."""
    # Imported here, because only the gate's environment has it.
    import shtab  # noqa: PLC0415

    parser = parser_of(COMMANDS)
    for name, sub in subparsers(parser).items():
        # The first line of a description, which may be a paragraph.
        sub.description = COMMANDS[name]
    for action in _all_arguments(parser):
        if action.metavar in _OF_FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined] # shtab's interface
        elif action.metavar in _OF_DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined] # shtab's interface
    return {file: shtab.complete(parser, shell).rstrip() + "\n" for shell, file in FILES.items()}


def _all_arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from arguments(parser)
    for sub in subparsers(parser).values():
        yield from _all_arguments(sub)
