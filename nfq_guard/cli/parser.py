# SPDX-License-Identifier: MIT
"""The parser of the command line: usage errors in one line, with a suggestion."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Never

from nfq_guard.errors import EXIT_USAGE

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

# Argparse's message about a word that is not among the choices, quoted or not.
_NO_CHOICE: Final = re.compile(r"invalid choice: '(?P<found>.*)' \(choose from (?P<known>.*)\)")
_UNRECOGNIZED: Final = "unrecognized arguments: "
_COMMAND: Final = "argument COMMAND: "
# Neither a number nor `-` for a standard stream.
_OPTION: Final = re.compile(r"-[^\d.]")
_REQUIRED: Final = "the following arguments are required: "

# Names that other programs use for our commands.
_ALSO_CALLED: Final = {
    "status": "verify",
    "stat": "verify",
    "check": "verify",
    "list": "show",
    "print": "show",
    "add": "install",
    "start": "install",
    "load": "install",
    "delete": "remove",
    "uninstall": "remove",
    "stop": "remove",
    "flush": "remove",
}


class _Formatter(argparse.HelpFormatter):
    """Breaks lines between words only: a name with hyphens can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Imported here, because only the help needs it.
        import textwrap  # noqa: PLC0415

        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = self._split_lines(text, width - len(indent))
        return "\n".join(f"{indent}{line}" for line in lines)


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, like every other error.

    Attributes:
        words: The words that this parser has parsed; None before.
    """

    words: Sequence[str] | None = None

    def __init__(self, **keywords: Any) -> None:  # noqa: ANN401 - as of ArgumentParser
        """Accept only complete option names: `--mod enforce` is a mistake, not a mode."""
        keywords.setdefault("formatter_class", _Formatter)
        super().__init__(**keywords, allow_abbrev=False)

    # argparse declares an overload for each kind of namespace; this command uses one.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Remember the words, for an error about them."""
        self.words = sys.argv[1:] if args is None else args
        return super().parse_known_args(self.words, namespace)

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """Write help, version or error; unlike argparse's, a failure of the output is an error."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> Never:
        """Write the message with a reference to the help, and exit with `EXIT_USAGE`."""
        parser = self.last()
        words = list(self.words or ())
        choice = _NO_CHOICE.search(message)
        if choice is not None and choice["found"] in words:
            # The value of an unknown option before the command was taken for the command.
            words = words[: words.index(choice["found"])]
        if (choice is not None and message.startswith(_COMMAND)) or message.startswith(_REQUIRED):
            # The missing argument may belong to a mistyped option.
            unknown = parser.unknown(words)
            message = _UNRECOGNIZED + unknown if unknown else message
        self.exit(
            EXIT_USAGE, f"nfq-guard: {self._meant(parser, message)} (see {parser.prog} --help)\n"
        )

    def last(self) -> "Parser":
        """The parser of the chosen command and action, as far as they were given."""
        for sub in subparsers(self).values():
            if isinstance(sub, Parser) and sub.words is not None:
                return sub.last()
        return self

    def unknown(self, words: Iterable[str]) -> str:
        """The first word that is an option unknown to this parser."""
        known = {name for action in arguments(self) for name in action.option_strings}
        for word in words:
            if word == "--":
                break
            name = word.partition("=")[0]
            # A short option may have its value in the same word.
            short = not word.startswith("--")
            if _OPTION.match(word) and (word[:2] if short else name) not in known:
                return name
        return ""

    def _meant(self, parser: "Parser", message: str) -> str:
        """The message with a suggestion, if a known word is close to the one in the message."""
        # Imported here, because only mistakes need it.
        from nfq_guard.policy.values import suggestion  # noqa: PLC0415

        if (choice := _NO_CHOICE.search(message)) is not None:
            known = tuple(word.strip("'") for word in choice["known"].split(", "))
            meant = suggestion(choice["found"], known)
            other = _ALSO_CALLED.get(choice["found"])
            if other in known:
                meant = f" (did you mean {other!r}?)"
            # Replace the list of all choices by the suggestion.
            return (
                f"{message[: choice.start()]}invalid choice: '{choice['found']}'{meant}"
                if meant
                else message
            )
        if message.startswith(_UNRECOGNIZED):
            words = message.removeprefix(_UNRECOGNIZED).split(" ")
            found = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
            if parser is not self and found in options(self):
                return f"{message} ({found} goes before the command)"
            return message + suggestion(found, (*options(parser), *options(self)))
        return message


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser, in the order of their declaration."""
    return parser._actions  # noqa: SLF001 - argparse has no public list of them


def options(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """The long options of a parser."""
    return tuple(
        option
        for action in arguments(parser)
        for option in action.option_strings
        if option.startswith("--")
    )


def subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The commands or actions of a parser, by name."""
    for action in arguments(parser):
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - it has no public name
            return action.choices
    return {}
