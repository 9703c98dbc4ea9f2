# SPDX-License-Identifier: MIT
"""The job inside the machine; reports as JSON lines on the second serial line.

`job.json` next to the tree selects the steps. A failed step is reported, and the next one runs.
"""

import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from nfq_guard.conntrack.kernel_rules import rules_of
from nfq_guard.flow import Evidence
from nfq_guard.flows import log_settings
from nfq_guard.flows.open import open_lookup
from nfq_guard.flows.source import EvidenceSource
from nfq_guard.probe.live import ask
from nfq_guard.probe.recognise import recognise
from tests.fuzz_kernel.remote import serve
from tests.kernels.netem_transfers import by_netem
from tests.support.queue import wait_for

_TREE: Final = Path("/guard")
_REPORT: Final = Path("/dev/ttyS1")
# The port to the fuzz on the host.
_LINE: Final = Path("/dev/vport0p1")
_WINDOW: Final = "tests/flows/test_bpf.py"
# These tests need a compiler.
_NOT_HERE: Final = (
    "test_object_comes_from_its_source",
    "test_kernels_before_6_11_know_zone_0_alone",
)
_OF_ZONES: Final = "test_mark_and_zone"
_NATIVE: Final = "tests/kernels/native_rules.py"
_SHORT_NATIVE: Final = (
    "test_the_file_is_what_the_defaults_render", "test_unjudged_packets",
    "TestNative::test_with_the_daemon[closed]",
)  # fmt: skip
_SETS: Final = "tests/kernels/set_rules.py"
_LINKS: Final = "tests/kernels/netem_and_flowtables.py"
_OWNERS: Final = "tests/kernels/owners.py"
_CONTAINER: Final = "tests/kernels/container.py"
# Tests of queue, evidence, rules, daemon and conntrack, in this order.
_LIVE: Final = (
    "tests/nfqueue/test_reader_kernel.py", "tests/flows/test_ctnetlink.py",
    "tests/firewall/test_live.py", "tests/firewall/test_traffic.py",
    "tests/service/test_run_kernel.py", "tests/service/test_worker_kernel.py",
    "tests/conntrack/test_kernel_agrees.py::test_kept_traces",
)  # fmt: skip
_BY_LOG: Final = "tests/service/test_kernel_log_kernel.py"
_BOTH_EVIDENCES: Final = f"{_BY_LOG}::test_the_two_sources_agree"
_SHORT_LIVE: Final = 2
# One trial of each kind: a successful attack, and the guard against it, with and without NAT.
_SHORT_MATRIX: Final = (
    *("--scenario", "late-retransmission", "snat-reply"), *("--mitigation", "none", "guard"),
)  # fmt: skip

_SERVICE: Final = "tests/systemd/test_service.py"
_INSTALL: Final = "tests/systemd/test_install.py"
_SHORT_SERVICE: Final = (
    "test_own_user_with_one_capability", "test_a_pin_lasts_as_long_as_the_service",
    "test_a_restart_replaces_the_evidence_of_an_earlier_configuration",
    "test_a_rule_of_the_host_leads_to_our_queue",
    "test_rules_that_are_impossible_here_are_not_tried_again",
    "test_check_knows_the_user_of_the_service",
    "test_check_knows_what_the_service_cannot_write",
    "test_by_hand_beside_the_service",
    "test_the_kernel_drops_a_flood_of_repeats",
    "test_as_installed_it_saves_a_connection", "test_stop_leaves_nothing_behind",
)  # fmt: skip
# Tests of the service that need the window.
_SERVICE_WITH_WINDOW: Final = (
    "test_a_pin_lasts_as_long_as_the_service", "test_an_old_pin_is_replaced",
    "test_a_pin_that_may_not_be_used_is_named",
)  # fmt: skip
_SERVICE_BY_LOG: Final = "test_the_kernels_log_as_evidence"
# The environment of the installed service.
_CLEAN: Final = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Steps that the short form runs on one kernel only: Debian 12's own, the newest, the oldest.
_SHORT_ONLY_ON: Final = {"service": "6.1.", "links": "7.", "live": "5.10."}

# Steps that the short form has not: two take minutes, the others a larger root file system.
_LONG_ONLY: Final = ("log", "transfers", "owners", "container")
# Healthy transfers in each of five modes: 1,000 in all.
_TRANSFERS: Final = 200
_CONFIG: Final = Path("/etc/nfq-guard/nfq-guard.toml")
# The instance in the record of the log's sysctls.
_INSTANCE: Final = "kernels"

Record = dict[str, Any]


def main() -> None:
    """Run each step of the job and report it."""
    job: Record = orjson.loads((_TREE / "job.json").read_bytes())
    is_short = job["short"]
    steps: dict[str, Callable[[], Iterator[Record]]] = {
        "kernel": _kernel,
        "evidence": _evidence,
        "fuzz": _fuzz,
        "window": _window_tests,
        "native": lambda: _native_tests(is_short=is_short),
        "live": lambda: _live_tests(is_short=is_short),
        "log": _log_tests,
        "owners": lambda: iter([_tested(_OWNERS)]),
        "container": _container_tests,
        "links": lambda: iter([_tested(_LINKS, *(("-k", "4") if is_short else ()))]),
        "transfers": _transfers,
        "matrix": lambda: _matrix(is_short=is_short),
        "service": lambda: _service(is_short=is_short),
    }
    wanted = [name for name in steps if _is_wanted(name, job)]
    with _REPORT.open("wb", buffering=0) as report:
        begin = {"step": "begin", "wanted": wanted, "short": is_short, "tree": job["tree"]}
        report.write(orjson.dumps(begin) + b"\n")
        for name in wanted:
            step = steps[name]
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


def _is_wanted(step: str, job: Record) -> bool:
    if job["steps"]:
        return step in job["steps"]
    if job["short"] and step in _LONG_ONLY:
        return False
    return not job["short"] or platform.release().startswith(_SHORT_ONLY_ON.get(step, ""))


def _kernel() -> Iterator[Record]:
    """The release, and the rules by the probe, which must be those of the release."""
    release = platform.release()
    yield {"release": release, "version": platform.version(), "rules": rules_of(release).name}
    found = recognise(ask())
    assert found.rules is rules_of(release), found
    yield {"asked": found.rules.name}


def _evidence() -> Iterator[Record]:
    """The evidence of `run` as root: the window, or the log that it turns on."""
    flows, _ = open_lookup()
    flows.close()
    if flows.evidence is not Evidence.BPF:
        log_settings.turn_on(_INSTANCE)
    source = EvidenceSource("auto", zones=(0,), instance=_INSTANCE)
    yield {"evidence": source.evidence.value, "why": source.reason}
    source.close()
    log_settings.turn_off(_INSTANCE)


def _fuzz() -> Iterator[Record]:
    """Play the packets that `tests.fuzz_kernel` on the host sends."""
    # Loads the modules with the sysctls, if this step is the first.
    open_lookup()[0].close()
    wait_for(_LINE.exists)
    yield serve(Connection(os.open(_LINE, os.O_RDWR | os.O_CLOEXEC)))


def _window_tests() -> Iterator[Record]:
    """The window from BPF, compared with arithmetic on packets."""
    flows, why = open_lookup()
    flows.close()
    if flows.evidence is not Evidence.BPF:
        yield {"passed": True, "summary": "not run", "not_run": why}
        return
    left_out = list(_NOT_HERE)
    flows, why = open_lookup((0, 1))
    flows.close()
    if flows.evidence is not Evidence.BPF:
        left_out.append(_OF_ZONES)
        yield {"not_run": f"{_OF_ZONES}: {why}"}
    yield _tested(_WINDOW, *(f"--deselect={_WINDOW}::{name}" for name in left_out))


def _native_tests(*, is_short: bool) -> Iterator[Record]:
    """The native nftables table; not every kernel has its statement `queue`."""
    yield _tested(
        *(f"{_NATIVE}::{name}" for name in _SHORT_NATIVE) if is_short else (_NATIVE, _SETS)
    )


@contextmanager
def _prepared() -> Iterator[None]:
    """Prepare the machine for the tests: conntrack is loaded, and no configuration is installed."""
    open_lookup()[0].close()
    aside = _CONFIG.with_suffix(".aside")
    _CONFIG.rename(aside)
    try:
        yield
    finally:
        aside.rename(_CONFIG)


def _live_tests(*, is_short: bool) -> Iterator[Record]:
    """The tests of the kernel's treatment of packets."""
    with _prepared():
        yield _tested(*_LIVE[: _SHORT_LIVE if is_short else None])


def _log_tests() -> Iterator[Record]:
    """The tests of the kernel's log as evidence, also where there is a window."""
    with _prepared():
        flows, why = open_lookup()
        flows.close()
        words = [_BY_LOG]
        if flows.evidence is not Evidence.BPF:
            words.append(f"--deselect={_BOTH_EVIDENCES}")
            yield {"not_run": f"the two sources of evidence side by side: {why}"}
        yield _tested(*words)


def _container_tests() -> Iterator[Record]:
    """The tests of the guard in a container, which has the host's configuration folder."""
    with _prepared():
        yield _tested(_CONTAINER)


def _transfers() -> Iterator[Record]:
    """Healthy connections over a bad link, in each mode of the guard and without it."""
    with _prepared(), TemporaryDirectory() as folder:
        found = by_netem(Path(folder), _TRANSFERS)
    yield {"injected": found.injected, "measured": found.measured, "met": found.met}


def _service(*, is_short: bool) -> Iterator[Record]:
    """The service, installed on this machine, under the systemd that is its first process."""
    os.environ["NFQ_GUARD_TEST_ON_THIS_MACHINE"] = "yes"
    flows, why = open_lookup()
    flows.close()
    words = [f"{_SERVICE}::{name}" for name in _SHORT_SERVICE] if is_short else [_SERVICE, _INSTALL]
    if flows.evidence is not Evidence.BPF:
        if is_short:
            words.append(f"{_SERVICE}::{_SERVICE_BY_LOG}")
        words += [f"--deselect={_SERVICE}::{name}" for name in _SERVICE_WITH_WINDOW]
        yield {"not_run": f"what is about the window: {why}"}
    yield _tested(*words)
    _output("systemctl", "restart", "nfq-guard")
    status = orjson.loads(_output("nfq-guard", "status", "--format", "json"))
    pid = _output("systemctl", "show", "--value", "-p", "MainPID", "nfq-guard").strip()
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (held,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    yield {"installed_evidence": status["evidence"], "capabilities": held}


def _output(*words: str) -> str:
    """The output of a command of the installed service; its errors go to the console."""
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=_CLEAN).stdout


def _tested(*words: str) -> Record:
    """Run tests; returns whether they passed, the failed ones, and their number."""
    command = [
        *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "timeout=600"),
        *("--durations=10", *words),
    ]
    lines = [""]
    with subprocess.Popen(
        command, cwd=_TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"CI": "true"},
    ) as tests:  # fmt: skip
        assert tests.stdout is not None
        for line in tests.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line.strip())
    summary = lines[-1].strip("= ").split(" in ")[0]
    bad = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return {"passed": tests.returncode == 0, "summary": summary, "bad": bad}


def _matrix(*, is_short: bool) -> Iterator[Record]:
    """The lab's trials, each with its expected outcome."""
    words = [sys.executable, "-m", "nfq_guard", "lab", "matrix", "--format", "json"]
    words += _SHORT_MATRIX if is_short else ("--family", "both")
    with subprocess.Popen(words, cwd=_TREE, stdout=subprocess.PIPE) as lab:
        assert lab.stdout is not None
        for line in lab.stdout:
            trial: Record = orjson.loads(line)
            names = ("scenario", "mitigation", "family", "expected", "outcome", "seconds")
            yield {name: trial[name] for name in names}
    yield {"status": lab.returncode}


if __name__ == "__main__":
    main()
