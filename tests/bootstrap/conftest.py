# SPDX-License-Identifier: MIT
"""A scratch tree with the real bootstrap.sh and the real `venv`; pip is a stub."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).parents[2]
# Debian's, which every user can run; those of pyenv may be root's alone.
SYSTEM_PYTHON: Final = "/usr/bin/python3"
# Owner of the trees whose owner is not root.
USER: Final = 65534


class Tree:
    """A scratch copy of what bootstrap.sh reads, and runs of it."""

    def __init__(self, root: Path) -> None:
        """Create the tree in `root`, which does not exist yet."""
        self.root = root
        shutil.copytree(Path(__file__).with_name("stubs"), root / "stubs")
        for name in ("bootstrap.sh", "systemd/pip_wheel.py"):
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(_ROOT / name, root / name)
        (root / "pyproject.toml").touch()
        self.constrain("")
        # No test installs a Debian package.
        apt = root / "stubs/apt-get"
        apt.write_text("#!/bin/sh\necho 'tests run no apt-get' >&2\nexit 1\n")
        apt.chmod(0o755)

    @property
    def venv(self) -> Path:
        """Where bootstrap.sh puts Python packages."""
        return self.root / ".venv"

    def constrain(self, text: str) -> None:
        """Change what the packages follow from; with `impossible` in it the stub of pip fails."""
        (self.root / "constraints.txt").write_text(text)

    def command(self, purpose: str = "run", *, python: str = sys.executable) -> list[str]:
        """The words that run bootstrap.sh from inside the tree."""
        environment = {
            "PATH": "stubs:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHON": python,
            "PYTHONPATH": str(self.root / "stubs"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return [
            "env",
            "-i",
            *(f"{k}={v}" for k, v in environment.items()),
            "./bootstrap.sh",
            purpose,
        ]

    def bootstrap(
        self, purpose: str = "run", *, python: str = sys.executable, user: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.sh to its end, as `user` where one is named."""
        return subprocess.run(
            self.command(purpose, python=python),
            cwd=self.root,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self) -> list[str]:
        """The calls of pip in the current .venv; empty if it does not run."""
        script = (
            "import sysconfig; print(open(sysconfig.get_path('purelib') + '/installed.txt').read())"
        )
        words = ["sh", "-c", '.venv/bin/python -c "$1"', "sh", script]
        result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=self.root)
        return [line.strip() for line in result.stdout.splitlines() if line]

    def works(self) -> bool:
        """Whether every package was installed into the present .venv, once."""
        calls = self.installed()
        return sum("netfilterqueue" in call for call in calls) == 1 and "--editable" in calls[-1]

    def belongs_to(self, owner: int) -> bool:
        """Whether all that is in the tree belongs to `owner`."""
        return {path.lstat().st_uid for path in self.root.rglob("*")} == {owner}

    def give_to(self, owner: int) -> None:
        """Make `owner` the owner of the tree and of all in it."""
        for path in [self.root, *self.root.rglob("*")]:
            os.chown(path, owner, owner, follow_symlinks=False)


@pytest.fixture
def tree() -> Iterator[Tree]:
    """A tree that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="nfq-guard-") as name:
        Path(name).chmod(0o755)
        yield Tree(Path(name) / "tree")
