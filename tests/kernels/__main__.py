# SPDX-License-Identifier: MIT
"""Runs the tree on Debian's kernels, each booted in QEMU: `make kernels`, `make kernels-short`.

Exit status 1 if a kernel could not be booted, differs from our rules for it, gives the guard less
evidence than before, fails a test, or has an unexpected outcome of a lab trial. Needs root and
`make wheels`. The cache is KERNELS_DIR, ~/.cache/nfq-guard/kernels by default.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from packaging.requirements import Requirement

from tests.container.image import build_root
from tests.kernels import page, record
from tests.kernels.fetch import (
    DEBIAN,
    KERNELS,
    Fetched,
    cache_folder,
    fetch_kernels,
    fetch_root,
    install_programs,
    make_disk,
    run,
    say,
)
from tests.kernels.machine import Machine
from tests.kernels.outcome import Outcome
from tests.support.root import require_root

_TREE: Final = Path(__file__).parents[2]
_PAGE: Final = _TREE / "docs" / "kernels.md"
_BUILD: Final = _TREE / "build"
_LOGS: Final = _BUILD / "kernels"
_SHORT_PACKETS: Final = 20_000
_LONG_PACKETS: Final = 1_000_000
# Lower bound of the packets a second that an emulated machine fuzzes.
_SLOWEST_PACKETS_S: Final = 300
_DEBIANS: Final = [name for name, one in KERNELS.items() if one.distribution is DEBIAN]
# The kernels whose jobs take longest, which are booted first.
_LONGEST_FIRST: Final = ("6.1", "7", "5.10", "6.12")
# Time limit for the rest of the job, seconds.
_LIMIT_S: Final = {True: 1_200, False: 10_800}
_POLL_S: Final = 0.5
# Packages that the tests in the machine need in addition to the wheels.
_TEST_PACKAGES: Final = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
# The parts of the tree that are copied into the machine.
_FOLDERS: Final = ("benchmarks", "bpf", "deploy", "docs", "rules", "share", "systemd", "tests")
_FILES: Final = (
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "constraints.txt",
    "pyproject.toml", "requirements.txt", "requirements-source.txt",
)  # fmt: skip


def main() -> int:
    """Boot the kernels, as many at a time as there are CPUs, and write the page if it is wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few minutes a kernel")
    parser.add_argument("--page", action="store_true", help="write docs/kernels.md")
    parser.add_argument(
        "--kernel", nargs="+", choices=KERNELS, default=_DEBIANS, help="those of Debian by default"
    )
    parser.add_argument(
        "--step",
        nargs="+",
        help="run these steps alone; the page keeps what earlier runs found in others",
    )
    parser.add_argument("--packets", type=int, help="fuzzed packets a kernel")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machines", type=int, default=os.cpu_count(), help="at a time")
    args = parser.parse_args()
    require_root("kernels")
    # Raise, so that machines and folders are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    packets = args.packets or (_SHORT_PACKETS if args.short else _LONG_PACKETS)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    install_programs()
    # The short form omits it.
    root = fetch_root(cache, with_owners=not args.short)
    kernels = fetch_kernels(cache, args.kernel)
    begun = time.monotonic()
    job = {"short": args.short, "steps": args.step, "tree": _state_of_the_tree()}
    with tempfile.TemporaryDirectory(dir=cache, prefix="run-") as folder:
        disk = Path(folder) / "root.disk"
        _make_disk(root, Path(folder) / "root", disk, job)
        limit_s = _LIMIT_S[args.short] + packets / _SLOWEST_PACKETS_S
        fuzz = ["--packets", str(packets), "--seed", str(args.seed)]
        if args.step and "fuzz" not in args.step:
            fuzz.clear()
        outcomes = _run_all(kernels, disk, limit_s, args.machines, fuzz)
    for outcome in outcomes:
        for line in outcome.problems():
            say(f"{outcome.name}: {line}")
    say(f"{time.monotonic() - begun:.0f} s in all, without downloads")
    if args.page:
        record.write(outcomes)
        _PAGE.write_text(page.render(record.read(), args.seed), encoding="ascii")
        say(f"wrote {_PAGE.relative_to(_TREE)}")
    return 1 if any(outcome.problems() for outcome in outcomes) else 0


def _run_all(
    kernels: dict[str, Fetched], disk: Path, limit_s: float, at_once: int, fuzz: list[str]
) -> list[Outcome]:
    """The outcomes, in the order of `kernels`.

    Args:
        kernels: The kernels to boot.
        disk: The root file system, with the tree.
        limit_s: Time limit of one machine, seconds.
        at_once: Number of machines that run at a time.
        fuzz: Arguments of `tests.fuzz_kernel`; none for a job without it.
    """
    _LOGS.mkdir(parents=True, exist_ok=True)
    outcomes = {name: Outcome(name, kernel.version) for name, kernel in kernels.items()}
    order = (*_LONGEST_FIRST, *KERNELS)
    waiting = sorted(kernels.items(), key=lambda item: order.index(item[0]))
    running: dict[str, tuple[Machine, float]] = {}
    reports: dict[str, BinaryIO] = {}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, kernel = waiting.pop(0)
                log = _LOGS / f"{name}.log"
                say(f"{name}: booting {kernel.release} ({kernel.version}), console in {log}")
                reports[name] = stack.enter_context((_LOGS / f"{name}.jsonl").open("wb"))
                traces = ("--traces", str(_LOGS / f"{name}.traces")) if fuzz else ()
                one = Machine(kernel, disk, log, limit_s, (*fuzz, *traces))
                machine = stack.enter_context(one)
                running[name] = machine, time.monotonic()
            time.sleep(_POLL_S)
            for name, (machine, begun) in list(running.items()):
                outcome = outcomes[name]
                for line in machine.records():
                    outcome.add(line)
                    reports[name].write(orjson.dumps(line) + b"\n")
                    if "seconds" in line and "scenario" not in line:
                        say(f"{name}: {line['step']}, {line['seconds']:.0f} s")
                if machine.ended:
                    if machine.timed_out:
                        failed = f"it did not end within {limit_s:.0f} s"
                        outcome.add({"step": "machine", "failed": failed})
                    outcome.seconds = time.monotonic() - begun
                    say(f"{name}: {outcome}")
                    machine.close()
                    del running[name]
    return list(outcomes.values())


def _state_of_the_tree() -> str:
    """The commit, and whether there are changes; `-` if the tree is not a checkout.

    Files that this program writes do not count as changes.
    """
    git = ("git", "-C", str(_TREE), "-c", "safe.directory=*")
    words = (*git, "rev-parse", "--short", "HEAD")
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    changes = subprocess.run(
        (*git, "diff", "--quiet", "HEAD", "--", ".", ":!docs/kernels.*"), check=False
    ).returncode
    return f"{commit or '-'}{', changed' if commit and changes else ''}"


def _make_disk(debian: Path, root: Path, disk: Path, job: dict[str, Any]) -> None:
    """The root file system with the service installed, and with the tree in /guard.

    It is installed here, because installation in an emulated machine takes minutes.
    """
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            "kernels: the machines have Debian 12's Python 3.11; please run: make PYTHON=python3.11"
        )
    run("cp", "-a", "--reflink=auto", str(debian), str(root))
    _make_tree(root / "guard", job)
    if "container" in job["steps"] if job["steps"] else not job["short"]:
        say("building the container's image")
        image = root / "guard" / "build" / "image.tar"
        run("tar", "-C", str(build_root()), "--numeric-owner", "-cf", str(image), ".")
    environment = ("env", "-i", f"PATH={_PATH}", "WHEELS=/guard/build/wheels")
    run("chroot", str(root), *environment, "/guard/systemd/install.sh", "install")
    make_disk(root, disk, "3G")


def _make_tree(folder: Path, job: dict[str, Any]) -> None:
    """Tests, wheels, and the unpacked wheels with the packages that the tests need."""
    wheels = sorted((_BUILD / "wheels").glob("*.whl"))
    if not wheels:
        sys.exit("kernels: no wheels; please run: make wheels")
    site, built = folder / "site", folder / "build" / "wheels"
    built.mkdir(parents=True)
    for wheel in wheels:
        shutil.copy(wheel, built)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for source, name in _files_for_tests():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, site / name)
    ignore = shutil.ignore_patterns("__pycache__")
    for part in _FOLDERS:
        shutil.copytree(_TREE / part, folder / part, ignore=ignore)
    for part in _FILES:
        shutil.copy(_TREE / part, folder)
    (folder / "job.json").write_bytes(orjson.dumps(job))
    # Otherwise each process in the emulated machine would compile its imports again.
    words = ["-m", "compileall", "-q", "-j", "0", "-x", "/scapy/contrib/", str(folder)]
    run(sys.executable, *words, "--invalidation-mode", "unchecked-hash")


def _files_for_tests() -> Iterator[tuple[Path, Path]]:
    """Files of `_TEST_PACKAGES` and their dependencies in this .venv, with their relative names."""
    wanted, seen = list(_TEST_PACKAGES), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for text in found.requires or ():
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for file in found.files or ():
            # Commands are outside of it, and not needed.
            if ".." not in file.parts and file.suffix != ".pyc":
                yield Path(file.locate()), Path(file)


if __name__ == "__main__":
    sys.exit(main())
