# SPDX-License-Identifier: MIT
"""The job inside the machine: what this kernel does, as JSON lines on the second serial line.

`job.json` beside the tree says how much of it to run. A step that fails is reported as failed and
the next one runs.
"""

import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.flows.open import open_flows
from nfq_guard.probe.live import ask
from nfq_guard.probe.recognise import recognise
from tests.fuzz_kernel.campaign import CHUNK_PACKETS, Tally, run_chunk

_TREE: Final = Path("/guard")
_REPORT: Final = Path("/dev/ttyS1")
# A kernel module of a feature under test may be loaded by its first use only.
_GIVE_UP_AFTER: Final = 5
_SHORTEST_CHUNKS: Final = 8
# They need a compiler.
_NOT_HERE: Final = (
    "tests/flows/test_bpf.py::test_object_comes_from_its_source",
    "tests/flows/test_bpf.py::test_kernels_before_6_11_know_zone_0_alone",
)

Record = dict[str, Any]


def main() -> None:
    """Run each step of the job and report it."""
    job: Record = orjson.loads((_TREE / "job.json").read_bytes())
    steps: dict[str, Callable[[], Iterator[Record]]] = {
        "kernel": _kernel,
        "evidence": _evidence,
        "fuzz": lambda: _fuzz(job["packets"], job["seed"]),
        "bpf": _bpf_tests,
        "native": _native_tests,
        "matrix": lambda: _matrix(job["scenarios"], job["mitigations"]),
    }
    with _REPORT.open("wb", buffering=0) as report:
        for name, step in steps.items():
            begun = time.monotonic()
            sys.stdout.write(f"== {name}\n")
            sys.stdout.flush()
            try:
                for record in step():
                    report.write(orjson.dumps({"step": name, **record}) + b"\n")
            except Exception as error:  # noqa: BLE001 - reported, and the next step runs
                traceback.print_exc()
                failed = {"step": name, "failed": f"{type(error).__name__}: {error}"}
                report.write(orjson.dumps(failed) + b"\n")
            seconds = round(time.monotonic() - begun, 1)
            report.write(orjson.dumps({"step": name, "seconds": seconds}) + b"\n")
        report.write(orjson.dumps({"step": "end"}) + b"\n")


def _kernel() -> Iterator[Record]:
    """Its release, and the rules that it was asked for; they must be those of its release."""
    release = platform.release()
    yield {"release": release, "version": platform.version(), "rules": rules_of(release).name}
    found = recognise(ask())
    assert found.rules is rules_of(release), found
    yield {"asked": found.rules.name}


def _evidence() -> Iterator[Record]:
    """What the guard would see as root, asked in the same process as `doctor` asks."""
    flows, why = open_flows()
    yield {"evidence": flows.evidence.value, "why": why}
    flows.close()


def _fuzz(packets: int, seed: int) -> Iterator[Record]:
    """Chunks have sysctls of their own, so a short run has several short ones."""
    tally = Tally()
    chunk = 0
    size = min(CHUNK_PACKETS, max(1, packets // _SHORTEST_CHUNKS))
    begun = time.monotonic()
    while tally.packets < packets and len(tally.failures) < _GIVE_UP_AFTER:
        run_chunk(seed, chunk, tally, min(size, packets - tally.packets))
        chunk += 1
        rate = tally.packets / (time.monotonic() - begun)
        sys.stdout.write(f"{tally.packets} packets, {rate:.0f}/s\n")
        sys.stdout.flush()
    for failure in tally.failures:
        sys.stdout.write(f"{failure.conditions}\n")
        sys.stdout.write("".join(f"  {step}\n" for step in failure.steps))
        sys.stdout.write(f"  {'; '.join(failure.mismatch.what)}\n")
    what = [list(failure.mismatch.what) for failure in tally.failures]
    yield {
        "packets": tally.packets,
        "flows": tally.flows,
        "windows": tally.windows,
        "mismatches": what,
    }


def _bpf_tests() -> Iterator[Record]:
    """The window as BPF reads it, held against arithmetic on packets.

    Nothing on kernels where BPF cannot look into zones, of which the tests have one.
    """
    flows, why = open_flows((0, 1))
    flows.close()
    if flows.evidence.value != "bpf":
        yield {"passed": True, "summary": f"not run: {why}"}
        return
    words = [word for name in _NOT_HERE for word in ("--deselect", name)]
    yield _tested("tests/flows/test_bpf.py", *words)


def _native_tests() -> Iterator[Record]:
    """The native nftables table, whose `queue` not every kernel has."""
    yield _tested("tests/kernels/native_rules.py")


def _tested(*words: str) -> Record:
    """Run tests; whether they passed, and pytest's last line."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=600",
            *words,
        ],
        cwd=_TREE, capture_output=True, text=True, check=False,
        env=os.environ | {"CI": "true"},
    )  # fmt: skip
    sys.stdout.write(done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines()
    return {"passed": done.returncode == 0, "summary": lines[-1] if lines else done.stderr[-500:]}


def _matrix(scenarios: list[str], mitigations: list[str]) -> Iterator[Record]:
    """The lab's trials, each with what was expected of it."""
    words = [sys.executable, "-m", "nfq_guard", "lab", "matrix", "--format", "json"]
    if scenarios:
        words += ["--scenario", *scenarios]
    if mitigations:
        words += ["--mitigation", *mitigations]
    with subprocess.Popen(words, cwd=_TREE, stdout=subprocess.PIPE) as lab:
        assert lab.stdout is not None
        for line in lab.stdout:
            trial: Record = orjson.loads(line)
            names = ("scenario", "mitigation", "expected", "outcome", "seconds")
            yield {name: trial[name] for name in names}
    yield {"status": lab.returncode}


if __name__ == "__main__":
    main()
