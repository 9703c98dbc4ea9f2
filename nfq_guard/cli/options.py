# SPDX-License-Identifier: MIT
"""Options that several commands share."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nfq_guard.errors import UsageError

# Enough for every number that an option takes.
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")


def whole_number(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number within bounds."""
    expected = f"a whole number from {lowest}" + ("" if highest is None else f" to {highest}")

    def parse(text: str) -> int:
        number = int(text) if _NUMBER.fullmatch(text) is not None else None
        if number is None or number < lowest or (highest is not None and number > highest):
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text[:60]!r}")
        return number

    return parse


def output_file(text: str) -> Path:
    """The `type` of an option that names a file to write."""
    if text in {"", "-"}:
        raise argparse.ArgumentTypeError(
            f"expected the name of a file, found {text!r}; standard output is /dev/stdout"
        )
    return Path(text)


def is_same_file(output: Path, source: str | Path) -> bool:
    """Whether an output would replace this input; False for files that cannot be reached."""
    try:
        return output.samefile(source)
    except OSError:
        return False


def keep_inputs(output: Path, **inputs: Sequence[str]) -> None:
    """Check that an output replaces no file that an option names.

    Args:
        output: The file to write.
        inputs: The files of each option, by its name; presets are no files.

    Raises:
        UsageError: It would replace one.
    """
    for option, names in inputs.items():
        for name in names:
            # "preset:" as in `policyfile`, which takes 8 ms to import.
            if not name.startswith("preset:") and is_same_file(output, name):
                raise UsageError(f"{output}: is the file of --{option}")


def add_format(parser: argparse.ArgumentParser) -> None:
    """Declare `--format text|json`."""
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="text for people, JSON for programs (default: text)",
    )


def add_color(parser: argparse.ArgumentParser) -> None:
    """Declare `--color`, which is accepted before and after the command."""
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        # Otherwise the default of the command's parser would override an option before the command.
        default=argparse.SUPPRESS,
        help="colours (default: auto, on a terminal)",
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Declare `--debug`, which is accepted before and after the command."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare `--config FILE`; its value is None for the default path."""
    # Imported here: most commands read no configuration.
    from nfq_guard.service.config import DEFAULT_PATH  # noqa: PLC0415

    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration (default: {DEFAULT_PATH})",
    )


def add_last_good(parser: argparse.ArgumentParser) -> None:
    """Declare `--last-good FILE`."""
    parser.add_argument(
        "--last-good",
        type=Path,
        metavar="FILE",
        help="where the daemon saves each configuration that it loads; used if the current one "
        "has mistakes",
    )


def add_result(parser: argparse.ArgumentParser, when: str) -> None:
    """Declare the option by which rules stay; `when` says when they are removed."""
    parser.add_argument(
        "--after",
        metavar="RESULT",
        help=f"{when}: the service's result ($SERVICE_RESULT of systemd); unless it is "
        "success, the rules of the fail modes closed and kernel-drop stay",
    )
