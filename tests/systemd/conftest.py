# SPDX-License-Identifier: MIT
"""A real systemd with the service installed by `make install`."""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from nfq_guard.lab.pace import limit
from tests.support.missing import cannot_run

_HERE: Final = Path(__file__).parent
_TREE: Final = _HERE.parent.parent
WHEELS: Final = _TREE / "build" / "wheels"
_PYTHON: Final = "/usr/bin/python3"
CONFIG: Final = "/etc/nfq-guard/nfq-guard.toml"
# Variable that is set where this host exists only for these tests and has the service installed.
_THIS_MACHINE: Final = "NFQ_GUARD_TEST_ON_THIS_MACHINE"
# The root whose systemd is booted: that of this host, or of another release of Debian.
_ROOT: Final = Path(os.environ.get("NFQ_GUARD_TEST_ROOT") or "/")
_CLEAN: Final = ("env", "-i", "PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")


class Guest:
    """A booted systemd: in namespaces of its own, or that of this host.

    Attributes:
        init: Its process id, as seen from this host.
    """

    def __init__(self, *enter: str, init: int = 1) -> None:
        """Take the words that make a command run inside."""
        self.init = init
        self._enter = enter

    def sh(self, script: str, *, check: bool = True, timeout_s: float = 60) -> str:
        """Run a shell script inside; returns its output, standard error included."""
        done = _run(*self._enter, "bash", "-c", f"exec 2>&1; {script}", timeout_s=timeout_s)
        if check and done.returncode:
            journal = "journalctl -u 'nfq-guard*' --no-pager -n 40"
            told = _run(*self._enter, "bash", "-c", journal, timeout_s=60).stdout
            pytest.fail(f"{script}: exit {done.returncode}: {done.stdout}{done.stderr}{told}")
        return done.stdout

    def show(self, prop: str, unit: str = "nfq-guard") -> str:
        """The value of a property of a unit."""
        return self.sh(f"systemctl show --value -p {prop} {unit}").strip()

    def install(self, before: str = "", *variables: str, check: bool = True) -> str:
        """Run what `make install` runs, with the wheels built earlier; returns its output.

        Args:
            before: Commands to run first, in the same mount namespace.
            variables: Further environment variables, `NAME=value`.
            check: Whether the test fails if the installation does.
        """
        words = " ".join((f"PYTHON={_PYTHON}", f"WHEELS={WHEELS}", *variables))
        script = f"{before}\n{words} {_TREE}/systemd/install.sh install"
        return self.sh(
            f"unshare --mount bash -ec {shlex.quote(script)}", check=check, timeout_s=120
        )

    def configure(self, daemon: str, policy: str = 'include = "preset:default"') -> None:
        """Write the configuration file, with these lines in its two tables."""
        self.sh(f"cat >{CONFIG} <<'END'\n[daemon]\n{daemon}\n[policy]\n{policy}\nEND")

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 15) -> None:
        """Wait until `condition` holds; fails the test, naming `what`, when it never does."""
        limit_s = limit(timeout_s)
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                journal = self.sh("journalctl -u nfq-guard --no-pager | tail -n 20", check=False)
                pytest.fail(f"not within {limit_s:.0f} s: {what}\n{journal}")
            time.sleep(0.05)


def _run(*words: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=limit(timeout_s)
    )


def _impossible() -> str | None:
    """Why no systemd can be booted here, or None."""
    if os.geteuid() != 0:
        return "needs root: it boots a systemd"
    if not (_ROOT / "lib/systemd/systemd").exists():
        return "Debian package systemd is missing"
    if not list(WHEELS.glob("nfq_guard-*.whl")):
        return "no wheels in build/wheels: run `make wheels` first"
    tag = subprocess.run(
        ["chroot", _ROOT, _PYTHON, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not list(WHEELS.glob(f"nfq_guard-*-{tag}-*.whl")):
        return f"{_PYTHON} is not the version that the wheels were built for"
    return None


@contextlib.contextmanager
def boot(*, install: bool = True) -> Iterator[Guest]:
    """Boot a guest until the end of `with`; `install` says whether it runs the service."""
    reason = _impossible()
    if reason is not None:
        cannot_run(reason)
    state = Path(f"/tmp/nfqg-{os.getpid()}-systemd")  # noqa: S108 - its name ends in a cgroup's
    nested = (str(_HERE / "nested.sh"), str(state))
    try:
        up = _run(*nested, "up", timeout_s=60)
        console = state / "console"
        assert up.returncode == 0, console.read_text(encoding="utf-8", errors="replace")[-2000:]
        guest = Guest(*nested, "sh", init=int((state / "init.pid").read_text(encoding="ascii")))
        if install:
            guest.install()
        yield guest
    finally:
        _run(*nested, "down", timeout_s=60)
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="session")
def booted() -> Iterator[Guest]:
    """This host, or a guest booted once, with the service installed and running."""
    if os.environ.get(_THIS_MACHINE):
        machine = Guest(*_CLEAN)
        machine.sh("systemctl enable --now nfq-guard")
        yield machine
        return
    with boot() as made:
        yield made


@pytest.fixture
def guest(booted: Guest) -> Guest:
    """The guest with the service freshly started, in mode dry-run and fail mode open."""
    booted.configure('mode = "dry-run"')
    booted.sh("systemctl reset-failed nfq-guard; systemctl restart nfq-guard")
    return booted
