# SPDX-License-Identifier: MIT
"""Policies on disk: files, and the presets that are part of the package."""

import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, final

from nfq_guard.errors import ConfigError, ConfigShortageError, Mistake, is_shortage
from nfq_guard.policy.default import default_model
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policy.parse import Reading, parse_policy, read_policy
from nfq_guard.policy.values import one_of, shown, suggestion
from nfq_guard.toml_lines import line_of, lines_of

PRESET_PREFIX: Final = "preset:"
# Hundreds of rules take about 50 kB.
LARGEST_FILE_BYTES: Final = 1 << 20

# tomllib's memory grows with the square of a key's parts: 2.4 GB for 20,000 parts. Keys of a
# configuration have three. "++" gives nothing back, and a name has one beginning: no backtracking.
# It repeats single characters only: Python 3.11.2, that of Debian 12, gives more than one wrong. A
# string that is not closed ends with the line or the text, so that it is read once.
_MOST_PARTS: Final = 16
_PART: Final = r"""(?:[\w-]++|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*"?|'[^'\n]*+'?)"""
_BASIC: Final = r"""\"{3}[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*(?:"{3,5})?"""
_LITERAL: Final = r"""'{3}[^']*+(?:'(?!'')[^']*+)*(?:'{3,5})?"""
# Tokens, as far as they tell a key from a comment and from a string with dots.
_TOKEN: Final = re.compile(
    rf"#[^\n]*+|{_BASIC}|{_LITERAL}"
    rf"|(?P<long>(?:{_PART}[ \t]*+\.[ \t]*+){{{_MOST_PARTS}}})|{_PART}|.",
    re.DOTALL,
)
# Fewer bits than a number of 4,300 digits has, the most that Python prints.
_MOST_BITS: Final = 14_000
# Python refuses to convert more.
_MANY_DIGITS: Final = re.compile(r"[0-9](?:_?[0-9]){4300,}")
_BYTE_ORDER_MARK: Final = "\ufeff"

ReadFile = Callable[[str | Path], bytes]
"""Reads a whole file of a configuration; raises ConfigError where that fails."""

_PRESETS: Final = Path(__file__).parent / "policy" / "presets"


def preset_names() -> tuple[str, ...]:
    """The names of the presets that are part of the package."""
    names = (entry.name for entry in _PRESETS.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def read_file(path: str | Path, most_bytes: int = LARGEST_FILE_BYTES) -> bytes:
    """Read a regular file of bounded size (`ReadFile`).

    Raises:
        ConfigError: It cannot be read or is larger.
    """
    source = str(path)
    try:
        # Opening a FIFO would block the reload of a daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _unreadable(source, "something other than a regular file")
            content = _read(descriptor, most_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        kind = ConfigShortageError if is_shortage(error.errno) else ConfigError
        raise _unreadable(source, error.strerror or "an error", kind) from None
    if len(content) > most_bytes:
        found = f"more than {most_bytes} bytes"
        expected = f"a file of at most {most_bytes >> 20} MiB"
        raise ConfigError(source, [Mistake("", expected, found)])
    return content


def read_toml(path: str | Path, read: ReadFile = read_file) -> dict[str, object]:
    """Read a TOML file.

    Raises:
        ConfigError: It cannot be read or is not valid TOML; the key is then `line:column`.
    """
    return parse_toml(read(path), str(path))


def parse_toml(content: bytes, source: str) -> dict[str, object]:
    """Parse the content of a TOML file.

    Raises:
        ConfigError: It is not valid UTF-8 or not valid TOML; the key is then `line:column`.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        found = f"the byte 0x{content[error.start]:02x}"
        raise ConfigError(source, [Mistake(f"{line}:{column}", "valid UTF-8", found)]) from None
    if text.startswith(_BYTE_ORDER_MARK):
        found = "a byte order mark (U+FEFF) before it: save the file without"
        raise ConfigError(source, [Mistake("1:1", "valid TOML", found)])
    row = _long_key_row(text)
    if row:
        expected = f"keys of at most {_MOST_PARTS} parts"
        raise ConfigError(source, [Mistake(f"{row}:1", expected, "more")])
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where, what = _place(str(error), text)
        raise ConfigError(source, [Mistake(where, "valid TOML", what)]) from None
    except RecursionError:
        found = "arrays or tables that are nested too deeply"
        raise ConfigError(source, [Mistake("", "valid TOML", found)]) from None
    except ValueError:
        digits = _MANY_DIGITS.search(text)
        where = "" if digits is None else _row_and_column(text, digits.start())
        found = "a number with too many digits"
        raise ConfigError(source, [Mistake(where, "valid TOML", found)]) from None
    mistakes = [
        Mistake(key, "text without a NUL character", shown(found))
        for key, found in _leaves(tables)
        if isinstance(found, str) and "\0" in found
    ]
    # Python reads such numbers of another base than ten, but cannot print them.
    mistakes += [
        Mistake(key, "valid TOML", "a number with too many digits")
        for key, found in _leaves(tables)
        if isinstance(found, int) and found.bit_length() > _MOST_BITS
    ]
    if mistakes:
        raise ConfigError(source, with_lines(mistakes, content))
    return tables


def _long_key_row(text: str) -> int:
    """The row of the first key of too many parts; 0 without one."""
    # Few files have so many dots in a line.
    if all(line.count(".") < _MOST_PARTS for line in text.split("\n")):
        return 0
    for token in _TOKEN.finditer(text):
        if token["long"] is not None:
            return text.count("\n", 0, token.start()) + 1
    return 0


def _row_and_column(text: str, at: int) -> str:
    return f"{text.count(chr(10), 0, at) + 1}:{at - text.rfind(chr(10), 0, at)}"


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every single value in a document, names of keys included, with its key path."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            path = f"{key}.{name}" if key else name
            yield path, name
            yield from _leaves(item, path)
    else:
        yield key, value


def with_lines(
    mistakes: Iterable[Mistake], content: bytes, included: Mapping[str, bytes] | None = None
) -> list[Mistake]:
    """The mistakes with the lines of their keys in `content`.

    A missing key has the line of its table. A key of an included file, which it names first, has
    its line in that file.

    Args:
        mistakes: Those with a line keep it.
        content: The file of the other keys.
        included: The content of the files that it includes, by path.
    """
    lines = {"": lines_of(content.decode("utf-8", "replace"))}
    others = {os.path.realpath(name): octets for name, octets in (included or {}).items()}

    def line(key: str) -> int:
        source, inside, rest = key.removeprefix("(").partition(") ")
        if not (inside and key.startswith("(")):
            return line_of(key, lines[""])
        if source not in others:
            return 0
        if source not in lines:
            lines[source] = lines_of(others[source].decode("utf-8", "replace"))
        return line_of(rest, lines[source])

    return [
        mistake if mistake.line else mistake._replace(line=line(mistake.key))
        for mistake in mistakes
    ]


def load_table(reference: str, read: ReadFile = read_file) -> tuple[str, Mapping[str, object]]:
    """Read a whole file, or the preset `preset:NAME`.

    Returns:
        Its source, the same for every spelling of its path, and its tables.

    Raises:
        ConfigError: It cannot be read.
    """
    if not reference.startswith(PRESET_PREFIX):
        path = Path(reference)
        return os.path.realpath(path), read_toml(path, read)
    name = reference.removeprefix(PRESET_PREFIX)
    names = preset_names()
    if name not in names:
        hint = suggestion(name, names)
        raise ConfigError(
            reference, [Mistake("", f"one of the presets {one_of(names)}", f"{name!r}{hint}")]
        )
    return reference, parse_toml((_PRESETS / f"{name}.toml").read_bytes(), reference)


def load_policy(reference: str, read: ReadFile = read_file) -> PolicyModel:
    """Read the policy of a file or a preset; other tables of the file are ignored.

    Raises:
        ConfigError: With every mistake.
    """
    files: dict[str, bytes] = {}

    def kept(name: str | Path) -> bytes:
        return files.setdefault(str(name), read(name))

    source, tables = load_table(reference, kept)
    named = reference if reference.startswith(PRESET_PREFIX) else str(Path(reference))
    if "policy" not in tables:
        raise ConfigError(named, [Mistake("policy", "a table [policy]", "nothing")])
    try:
        return parse_policy(
            tables["policy"], source=named, includes=FileIncludes(source, named, kept)
        )
    except ConfigError as error:
        if reference.startswith(PRESET_PREFIX):
            raise
        content = kept(Path(reference))
        raise ConfigError(error.source, with_lines(error.mistakes, content, files)) from None


def read_table(table: object, source: str, read: ReadFile = read_file) -> Reading:
    """Read the table `[policy]` of the file `source`; None for a file without one."""
    if table is None:
        return Reading(model=default_model(), mistakes=())
    return read_policy(
        table, source=source, includes=FileIncludes(os.path.realpath(source), source, read)
    )


def load_compiled(reference: str, read: ReadFile = read_file) -> CompiledPolicy:
    """Read the policy of a file or a preset, and compile it.

    Raises:
        ConfigError: With every mistake.
    """
    return compile_policy(load_policy(reference, read))


def shadow_path(reference: str, source: str) -> Path | None:
    """The file named by the key `shadow` of the file `source`; None without one, or a preset."""
    if not reference or reference.startswith(PRESET_PREFIX):
        return None
    return Path(source).parent / reference


def read_shadow(
    reference: str, source: str, mistakes: list[Mistake], read: ReadFile = read_file
) -> CompiledPolicy | None:
    """Read the policy named by the key `shadow` of the file `source`, relative to that file.

    Returns None without one, and if it has mistakes, which are added to `mistakes`.
    """
    if not reference:
        return None
    path = shadow_path(reference, source)
    try:
        return load_compiled(reference if path is None else str(path), read)
    except ConfigError as error:
        mistakes += [
            mistake._replace(key=f"daemon.shadow ({error.source}) {mistake.key}".strip())
            for mistake in error.mistakes
        ]
        return None


@final
class FileIncludes:
    """Loads includes: presets, and files relative to the including file."""

    def __init__(self, path: str, shown: str, read: ReadFile = read_file) -> None:
        """Start from the file `path`, named `shown` by the operator."""
        self._read = read
        self._path = path
        self._shown = shown

    def __call__(self, reference: str, within: str) -> tuple[str, Mapping[str, object]]:
        """As `policy.parse.Includes`."""
        if not reference.startswith(PRESET_PREFIX):
            outer = self._path if within == self._shown else within
            reference = str(Path(outer).parent / reference)
            if os.path.realpath(reference) == self._path:
                # The parser detects circular includes by this name.
                return self._shown, {}
        source, tables = load_table(reference, self._read)
        others = [name for name in tables if name != "policy"]
        if others:
            raise ConfigError(
                source, [Mistake(name, "only the table [policy]", repr(name)) for name in others]
            )
        policy = tables.get("policy")
        if not isinstance(policy, Mapping):
            raise ConfigError(source, [Mistake("policy", "a table [policy]", "nothing")])
        return source, policy


def _read(descriptor: int, most_bytes: int) -> bytes:
    """The content of the file, up to one byte beyond the bound."""
    parts: list[bytes] = []
    left = most_bytes + 1
    while left and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _unreadable(source: str, why: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
    return kind(source, [Mistake("", "a readable file", why)])


def _place(message: str, text: str) -> tuple[str, str]:
    """Split `line:column` from a message of tomllib."""
    what, _, place = message.rpartition(" (at ")
    words = place.rstrip(")").replace(",", "").split()
    if len(words) == 4:
        return f"{words[1]}:{words[3]}", what
    lines = text.split("\n")
    return f"{len(lines)}:{len(lines[-1]) + 1}", what or message
