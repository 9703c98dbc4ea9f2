# SPDX-License-Identifier: MIT
"""Executes a Containerfile without a container engine, as root, and builds its stages' roots.

Supports only the instructions of our Containerfile. Base images are built by debootstrap from
Debian's packages, without the documentation that the slim images omit.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.chroot import run_in

_BASE: Final = "debian:"
_SLIM: Final = "-slim"
_LEFT_OUT: Final = ("doc", "info", "locale", "man")


@dataclass
class Stage:
    """A stage of the build.

    Attributes:
        root: Its root.
        workdir: Where its commands run.
        entrypoint: The command of a container, before `command`.
        command: The default arguments.
    """

    root: Path
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions, with lines joined, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def build(file: Path, context: Path, place: Path, mirror: str) -> Stage:
    """Build all stages in `place`; returns the last one.

    Args:
        file: The Containerfile.
        context: The source directory of COPY.
        place: A directory for roots; existing base images in it are reused.
        mirror: Mirror of Debian.
    """
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(file.read_text(encoding="utf-8")):
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            root = place / f"stage-{len(stages)}"
            shutil.rmtree(root, ignore_errors=True)
            subprocess.run(["cp", "-a", str(_base(image, place, mirror)), str(root)], check=True)
            stage = stages[name or "last"] = Stage(root)
            continue
        assert stage is not None, f"{word} before FROM"
        if word == "RUN":
            run_in(stage.root, rest, place / "log", workdir=stage.workdir)
        elif word == "COPY":
            _copy(stage, rest, context, stages)
        elif word == "WORKDIR":
            stage.workdir = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        elif word == "CMD":
            stage.command = json.loads(rest)
        else:
            raise AssertionError(f"this reader does not know {word}")
    assert stage is not None
    return stage


def _base(image: str, place: Path, mirror: str) -> Path:
    assert image.startswith(_BASE) and image.endswith(_SLIM), image  # noqa: PT018 - one form
    suite = image.removeprefix(_BASE).removesuffix(_SLIM)
    base = place / f"base-{suite}"
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", suite, str(base), mirror],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        shutil.rmtree(base / "var/cache/apt/archives")
        shutil.rmtree(base / "var/lib/apt/lists")
        for name in _LEFT_OUT:
            shutil.rmtree(base / "usr/share" / name, ignore_errors=True)
        (base / "etc/dpkg/dpkg.cfg.d/slim").write_text(
            "".join(f"path-exclude /usr/share/{name}/*\n" for name in _LEFT_OUT), encoding="ascii"
        )
        (base / "made").touch()
    return base


def _copy(stage: Stage, words: str, context: Path, stages: dict[str, Stage]) -> None:
    *sources, target = shlex.split(words)
    root = context
    if sources[0].startswith("--from="):
        root = stages[sources.pop(0).removeprefix("--from=")].root
    where = stage.root / str(Path(stage.workdir) / target).lstrip("/")
    for source in sources:
        what = root / source.lstrip("/")
        assert what.exists(), what
        if what.is_dir():
            where.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{what}/.", str(where)], check=True)
        else:
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy(what, where)
