# SPDX-License-Identifier: MIT
"""The last good configuration: a copy of the files that a daemon loaded.

After a reload that refuses a file with mistakes, the daemon continues with the configuration in
force. With the copy a restart does so as well, and reports it. The daemon writes the copy, and
steps of its unit that run as root read it, so these use nothing but settings from it.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple, final

import msgspec

from nfq_guard.errors import ConfigError, ConfigShortageError, Mistake, OutputError
from nfq_guard.outfile import replacing
from nfq_guard.policyfile import LARGEST_FILE_BYTES, read_file
from nfq_guard.service.config import Config, LoadedPolicy, cut_to_nothing, load_config
from nfq_guard.service.config import load_settings as load_settings_alone
from nfq_guard.service.settings import Settings
from nfq_guard.telemetry.events import timestamp

# Room for two files of the largest size, in Base64; those in use have a twentieth of it.
_LARGEST_BYTES: Final = LARGEST_FILE_BYTES * 4


@final
class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration that a daemon loaded.

    Attributes:
        at: When it was loaded, in the format of event timestamps.
        files: The content of every file, by path.
    """

    at: str
    files: dict[str, bytes]

    def read(self, path: str | Path) -> bytes:
        """The saved content of the file (`policyfile.ReadFile`).

        Raises:
            ConfigError: The configuration did not include it.
        """
        try:
            return self.files[str(path)]
        except KeyError:
            mistake = Mistake("", "a file of the last good configuration", "another file")
            raise ConfigError(str(path), [mistake]) from None


@final
class Found(NamedTuple):
    """A configuration to start with.

    Attributes:
        config: The configuration on disk, or the last good one.
        refused: Why the configuration on disk cannot be used; None if it is `config`.
        at: When a daemon loaded the last good one; empty if `config` is on disk.
    """

    config: Config
    refused: ConfigError | None = None
    at: str = ""


def load(path: Path | None, copy: Path | None) -> Found:
    """Load the configuration, or the last good one if it has mistakes.

    A file that a crash of the host has cut to nothing is such a mistake if the last good one had a
    table: its defaults are a dry-run.

    Args:
        path: As `config.read_config`.
        copy: The file in which `save` keeps the last good configuration; None for none.

    Raises:
        ConfigError: With every mistake of the configuration, if there is no last good one that can
            be used.
    """
    try:
        config = load_config(path)
    except ConfigError as error:
        if copy is None or isinstance(error, ConfigShortageError):
            raise
        found = _in_place_of(error, path, copy)
        if found is None:
            raise
        return found
    if copy is not None and config.is_empty:
        refused = cut_to_nothing(config.source, "the last good configuration")
        found = _in_place_of(refused, path, copy)
        if found is not None and not found.config.is_empty:
            return found
    return Found(config)


def _in_place_of(refused: ConfigError, path: Path | None, copy: Path) -> Found | None:
    """The last good configuration; None without one.

    Raises:
        ConfigError: It cannot be used; with the mistakes of `refused` and its own.
    """
    try:
        kept = _read(copy)
        return None if kept is None else Found(load_config(path, kept.read), refused, kept.at)
    except ConfigShortageError:
        raise
    except ConfigError as unusable:
        # Otherwise nothing would say why the daemon does not start with the last good one.
        mistakes = [
            one._replace(key=f"(last good {copy}) {one.key}".rstrip(), line=0)
            for one in unusable.mistakes
        ]
        raise ConfigError(refused.source, [*refused.mistakes, *mistakes]) from None


def load_settings(path: Path | None, copy: Path | None) -> Settings:
    """The settings with which a daemon starts: those of the file, even if its policy has mistakes.

    Raises:
        ConfigError: With every mistake outside of the table `[policy]`.
    """
    if copy is None:
        return load_settings_alone(path)
    try:
        return load(path, copy).config.settings
    except ConfigError:
        return load_settings_alone(path)


def save(copy: Path, loaded: LoadedPolicy) -> None:
    """Save a configuration as the last good one, atomically.

    Raises:
        OutputError: It cannot be written, or is too large to be read again.
    """
    content = msgspec.json.encode(Copy(at=timestamp(), files=dict(loaded.files)))
    if len(content) > _LARGEST_BYTES:
        most = _LARGEST_BYTES >> 20
        raise OutputError(f"{copy}: cannot be written: more than {most} MiB in Base64")
    try:
        with replacing(copy) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{copy}: cannot be written: {error.strerror}") from None


def _read(copy: Path) -> Copy | None:
    """The last good configuration; None if there is none.

    Raises:
        ConfigError: It cannot be read, or is damaged.
    """
    try:
        content = read_file(copy, _LARGEST_BYTES)
        return msgspec.json.decode(content, type=Copy)
    except ConfigError:
        if not os.path.lexists(copy):
            return None
        raise
    except msgspec.DecodeError:
        mistake = Mistake("", "a copy that a daemon has saved", "other content")
        raise ConfigError(str(copy), [mistake]) from None
