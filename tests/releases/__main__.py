# SPDX-License-Identifier: MIT
"""Builds, tests and installs the tree on other releases of Debian: `make releases`, as root.

Each release has its own version of Python. In a root of the release, the steps of `make deb` build
the wheels and the package, and the tests without the kernel and those of the compiled modules run.
Then the package and the wheels are installed on its systemd, in namespaces, in a second root
without a compiler.

Roots, a copy of the tree and the log stay in the folder RELEASES_DIR, by default
~/.cache/nfq-guard/releases.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.kernels.fetch import mirror
from tests.support.chroot import run_in
from tests.support.root import require_root

_TREE: Final = Path(__file__).parents[2]
_PLACE: Final = "~/.cache/nfq-guard/releases"
_SUITES: Final = ("trixie", "forky")
# Used for every release, as an older debootstrap does not know the names of later ones.
_SCRIPT: Final = "/usr/share/debootstrap/scripts/sid"
# Packages are still verified; the lists of a release that is not stable yet expire in a week.
_MIRROR: Final = 'Acquire::Check-Valid-Until "false";\n'
# As on a host of that release: systemd, and what the package depends on.
_MACHINE: Final = (
    "dbus", "iproute2", "iptables", "kmod", "libbpf1", "libnetfilter-queue1", "logrotate", "man-db",
    "nftables", "pipx", "procps", "python3", "python3-venv", "systemd", "systemd-sysv",
)  # fmt: skip
_APT: Final = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o APT::Sandbox::User=root"
_LINTIAN: Final = "lintian --allow-root --fail-on error,warning"
_TESTS: Final = {
    "pure": ".venv/bin/pytest -q -n 2 -m 'not kernel'",
    # The compiler of the BPF object is that of Debian 12.
    "compiled": "make compiled MORE='--deselect tests/flows/test_bpf.py::"
    "test_object_comes_from_its_source'",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Try other releases of Debian.")
    parser.add_argument(
        "--suite", action="append", choices=_SUITES, help=f"one of {', '.join(_SUITES)} (all)"
    )
    parser.add_argument(
        "--step", action="append", choices=("build", *_TESTS, "install"), help="one alone (all)"
    )
    options = parser.parse_args()
    require_root("releases")
    place = Path(os.environ.get("RELEASES_DIR") or _PLACE).expanduser()
    for suite in options.suite or _SUITES:
        Release(suite, place).run(options.step or ("build", *_TESTS, "install"))
    return 0


class Release:
    """A release of Debian, with its roots."""

    def __init__(self, suite: str, place: Path) -> None:
        self.suite = suite
        self._folder = place / suite
        self._log = self._folder / "log"
        self._machine = self._folder / "machine"
        self._builder = self._folder / "builder"
        self._tree = self._folder / "tree"

    def run(self, steps: tuple[str, ...] | list[str]) -> None:
        """Run the steps; the first failure ends this program."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log.write_bytes(b"")
        self._make_roots()
        for step in steps:
            begun = time.monotonic()
            if step == "build":
                self._copy_tree()
                self._in_builder(f"make deb; {_LINTIAN} build/deb/nfq-guard_*.deb")
            elif step == "install":
                self._install()
            else:
                self._in_builder(_TESTS[step])
            self._say(f"{step}, {time.monotonic() - begun:.0f} s")

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{self.suite}: {text}\n")
        sys.stdout.flush()

    def _make_roots(self) -> None:
        made = self._folder / "made"
        wanted = " ".join(_MACHINE)
        if made.exists() and made.read_text(encoding="ascii") == wanted:
            return
        self._say(f"building the root {self._machine}")
        made.unlink(missing_ok=True)
        for root in (self._machine, self._builder):
            shutil.rmtree(root, ignore_errors=True)
        words = ["debootstrap", "--variant=minbase", self.suite, str(self._machine)]
        words += [mirror(self.suite), _SCRIPT]
        with self._log.open("ab") as log:
            subprocess.run(words, check=True, stdout=log, stderr=log)
        (self._machine / "etc/apt/apt.conf.d/mirror").write_text(_MIRROR, encoding="ascii")
        packages = " ".join(_MACHINE)
        run_in(
            self._machine,
            f"{_APT} update; {_APT} install -y --no-install-recommends {packages}; {_APT} clean",
            self._log,
            registry=False,
        )
        subprocess.run(["cp", "-a", str(self._machine), str(self._builder)], check=True)
        run_in(self._builder, f"{_APT} install -y --no-install-recommends git make", self._log)
        made.write_text(wanted, encoding="ascii")

    def _copy_tree(self) -> None:
        """Copy what git has of this tree, with its changes; .venv and build/ of the copy stay."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=_TREE, check=True, capture_output=True,
        ).stdout  # fmt: skip
        files = [_TREE / name for name in os.fsdecode(listed).split("\0") if name]
        self._tree.mkdir(exist_ok=True)
        for old in self._tree.iterdir():
            if old.name not in {".venv", "build", ".git"}:
                if old.is_dir():
                    shutil.rmtree(old)
                else:
                    old.unlink()
        for file in files:
            if file.is_symlink() or file.exists():  # and is not removed since
                target = self._tree / file.relative_to(_TREE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target, follow_symlinks=False)
        if not (self._tree / ".git").exists():
            subprocess.run(["git", "init", "-q", str(self._tree)], check=True)

    def _in_builder(self, command: str) -> None:
        environment = "unset PYTHONDONTWRITEBYTECODE; export HOME=/root LANG=C.UTF-8 CI=true"
        run_in(
            self._builder,
            f"{environment}; {command}",
            self._log,
            workdir=str(self._tree),
            binds=(self._tree,),
        )

    def _install(self) -> None:
        """Run the tests of installation on the machine, by this host's pytest."""
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/systemd/deb.py", "tests/systemd/pip.py"],
            cwd=self._tree,
            env=os.environ | {"NFQ_GUARD_TEST_ROOT": str(self._machine)},
            check=True,
        )


if __name__ == "__main__":
    sys.exit(main())
