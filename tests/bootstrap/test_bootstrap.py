# SPDX-License-Identifier: MIT
"""bootstrap.sh makes a .venv that fits, whatever an earlier run has left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bootstrap.conftest import SYSTEM_PYTHON, USER, Tree


def version_of(python: str | Path) -> str:
    """`X.Y.Z (PATH)` of an interpreter; empty where it is too old."""
    probe = (
        "import os, platform, sys; assert sys.version_info >= (3, 11);"
        "print(platform.python_version(), '(%s)' % os.path.realpath(sys._base_executable))"
    )
    words = [str(python), "-c", probe]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def two_interpreters() -> tuple[str, str]:
    """Two that differ in their version."""
    pyenv = [str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python3")]
    found: dict[str, str] = {}
    for python in [SYSTEM_PYTHON, sys.executable, *pyenv]:
        version = version_of(python) if Path(python).exists() else ""
        if version:
            found.setdefault(version.split()[0], str(python))
    if len(found) < 2:
        pytest.skip("this machine has one Python interpreter")
    first, second, *_ = found.values()
    return first, second


def test_other_interpreter(tree: Tree) -> None:
    """A .venv of another interpreter is made anew, without anything of the old one."""
    old, new = two_interpreters()
    assert tree.bootstrap(python=old).returncode == 0
    result = tree.bootstrap(python=new)
    assert result.returncode == 0
    assert f"making .venv anew: it was made by Python {version_of(old)}" in result.stdout
    assert version_of(tree.venv / "bin/python") == version_of(new)
    assert len(list(tree.venv.glob("lib/python*"))) == 1
    assert tree.works()


def test_a_wrong_interpreter_installs_nothing(tree: Tree) -> None:
    """It would lack modules and headers too, which packages for it would not bring."""
    result = tree.bootstrap(python="/nonexistent")
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr == "bootstrap: PYTHON: /nonexistent does not exist\n"
    old = tree.root / "old"
    old.write_text("#!/bin/sh\n[ $1 != -V ] || exec echo Python 3.9.2\necho False\n")
    old.chmod(0o755)
    result = tree.bootstrap(python=str(old))
    assert (result.returncode, result.stdout) == (69, "")
    assert f"{old} is Python 3.9.2, and Python 3.11 or later is needed" in result.stderr
    result = tree.bootstrap(python="/bin/ls")
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr == "bootstrap: PYTHON: /bin/ls is no Python that runs here\n"


def test_second_run_changes_nothing(tree: Tree) -> None:
    assert tree.bootstrap().returncode == 0
    result = tree.bootstrap()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_moved_tree(tree: Tree) -> None:
    """The programs in .venv name the interpreter by its full path, so a moved .venv is useless."""
    assert tree.bootstrap().returncode == 0
    was = tree.root
    tree.root = was.rename(was.with_name("moved"))
    result = tree.bootstrap()
    assert result.returncode == 0
    assert f"making .venv anew: it was made in {was}\n" in result.stdout
    assert str(was) not in (tree.venv / "bin/activate").read_text()
    assert tree.works()


def test_interpreter_that_no_longer_runs(tree: Tree) -> None:
    """As after a broken upgrade of the interpreter."""
    assert tree.bootstrap().returncode == 0
    link = tree.venv / "bin/python"
    link.unlink()
    link.symlink_to("/nonexistent/python3")
    result = tree.bootstrap()
    assert result.returncode == 0
    assert "making .venv anew: its interpreter does not run" in result.stdout
    assert tree.works()


def test_interpreter_upgraded_in_place(tree: Tree) -> None:
    """Same path, other version."""
    assert tree.bootstrap().returncode == 0
    made = tree.venv / "made"
    made.write_text(made.read_text().replace("Python 3.", "Python 3.0."))
    result = tree.bootstrap()
    assert "making .venv anew: it was made by Python 3.0." in result.stdout
    assert tree.works()


def test_run_accepts_a_venv_for_tests(tree: Tree) -> None:
    """`make demo` changes nothing in a .venv that `make test` has made."""
    assert tree.bootstrap("test").returncode == 0
    made = (tree.venv / "made").read_text()
    result = tree.bootstrap("run")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tree.venv / "made").read_text() == made


@pytest.mark.parametrize("remade", [False, True])
def test_run_keeps_what_tests_need(tree: Tree, *, remade: bool) -> None:
    """`make demo` installs the packages of the tests again where it installs any."""
    assert tree.bootstrap("test").returncode == 0
    if remade:
        tree.root = tree.root.rename(tree.root.with_name("moved"))
    else:
        tree.constrain("cython==3")
    result = tree.bootstrap("run")
    assert result.returncode == 0
    assert ("anew" in result.stdout) is remade
    assert "installing Python packages into .venv (test)" in result.stdout
    assert tree.bootstrap("test").stdout == ""


def test_changed_requirements(tree: Tree) -> None:
    """Packages are installed again, into the same .venv."""
    assert tree.bootstrap().returncode == 0
    before = tree.venv.stat().st_ino
    tree.constrain("cython==3")
    result = tree.bootstrap()
    assert result.returncode == 0
    assert "installing Python packages" in result.stdout
    assert "anew" not in result.stdout
    assert tree.venv.stat().st_ino == before
    assert tree.bootstrap().stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(tree: Tree, number: signal.Signals) -> None:
    """An unfinished .venv is never taken for a finished one, however its creation ended."""
    (tree.root / "hold").touch()
    running = subprocess.Popen(
        tree.command(),
        cwd=tree.root,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not tree.installed() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, number)
    output, _ = running.communicate(timeout=60)
    (tree.root / "hold").unlink()
    assert running.returncode != 0
    assert not (tree.venv / "made").exists()
    if number == signal.SIGINT:
        assert ".venv is not finished; the next run makes it anew" in output
    result = tree.bootstrap()
    assert result.returncode == 0
    assert "making .venv anew: an earlier run did not finish it" in result.stdout
    assert tree.works()


def test_two_at_once(tree: Tree) -> None:
    """The second one waits, and uses what the first one has made."""
    (tree.root / "hold").touch()
    both = [
        subprocess.Popen(tree.command(), cwd=tree.root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.stdout for process in both]
    assert outputs[0] is not None
    assert outputs[1] is not None
    waiting = "bootstrap: waiting for another run in this folder\n"
    first, second = outputs[0].readline(), outputs[1].readline()
    assert (first == waiting) != (second == waiting)
    (tree.root / "hold").unlink()
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "" in said, "the second one made it again"
    assert tree.works()


def test_failed_upgrade_is_not_finished(tree: Tree) -> None:
    """A finished .venv whose packages could not be upgraded counts as unfinished."""
    assert tree.bootstrap().returncode == 0
    tree.constrain("impossible")
    assert tree.bootstrap().returncode != 0
    tree.constrain("")
    result = tree.bootstrap()
    assert "making .venv anew: an earlier run did not finish it" in result.stdout
    assert tree.works()


@pytest.mark.kernel
def test_disk_full(tree: Tree) -> None:
    """On a file system with no room left, then on the same one with room."""
    script = """
        mount -t tmpfs -o size=3m tmpfs "$1" && cp -a "$2/." "$1" && cd "$1" || exit 99
        shift 2
        "$@"; echo "first: $?"
        mount -o remount,size=20m .
        "$@"; echo "second: $?"
        grep -c -e --editable .venv/lib/python*/site-packages/installed.txt
    """
    disk = tree.root.with_name("disk")
    disk.mkdir()
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(disk), str(tree.root)]
    result = subprocess.run(
        [*words, *tree.command()], capture_output=True, text=True, check=True, cwd=tree.root
    )
    assert "No space left on device" in result.stdout + result.stderr
    assert "first: 0" not in result.stdout
    assert "making .venv anew: an earlier run did not finish it" in result.stdout
    assert result.stdout.endswith("second: 0\n1\n")


@pytest.mark.kernel
def test_root_gives_back(tree: Tree) -> None:
    """Files that root has made in a user's tree belong to the user, who can go on with them."""
    tree.give_to(USER)
    assert tree.bootstrap(python=SYSTEM_PYTHON).returncode == 0
    assert tree.belongs_to(USER)
    result = tree.bootstrap(python=SYSTEM_PYTHON, user=USER)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    tree.constrain("cython==3")
    assert tree.bootstrap(python=SYSTEM_PYTHON, user=USER).returncode == 0


@pytest.mark.kernel
def test_root_gives_back_what_it_could_not_finish(tree: Tree) -> None:
    tree.constrain("impossible")
    tree.give_to(USER)
    assert tree.bootstrap(python=SYSTEM_PYTHON).returncode != 0
    assert tree.venv.exists()
    assert tree.belongs_to(USER)


@pytest.mark.kernel
def test_give_back(tree: Tree) -> None:
    """What later steps of a make run by root have built; links are not followed."""
    tree.give_to(USER)
    (tree.root / "build/wheels").mkdir(parents=True)
    outside = tree.root.with_name("outside")
    outside.touch()
    (tree.root / "build/link").symlink_to(outside)
    assert tree.bootstrap("give-back").returncode == 0
    assert tree.belongs_to(USER)
    assert outside.stat().st_uid == 0


@pytest.mark.kernel
def test_user_meets_roots_venv(tree: Tree) -> None:
    """One line that says what to do; nothing is changed."""
    assert tree.bootstrap(python=SYSTEM_PYTHON).returncode == 0
    os.chown(tree.root, USER, USER)
    tree.constrain("cython==3")
    result = tree.bootstrap(python=SYSTEM_PYTHON, user=USER)
    assert result.returncode == 69
    assert result.stderr == (
        "bootstrap: .venv holds files of another user: "
        f"please run once: sudo rm -rf {tree.root}/.venv\n"
    )
    assert (tree.venv / "made").exists()


@pytest.mark.kernel
def test_user_meets_roots_build(tree: Tree) -> None:
    (tree.root / "build").mkdir()
    os.chown(tree.root, USER, USER)
    result = tree.bootstrap("test", python=SYSTEM_PYTHON, user=USER)
    assert result.returncode == 69
    assert f"please run once: sudo rm -rf {tree.root}/build\n" in result.stderr
