# SPDX-License-Identifier: MIT
"""Renders docs/kernels.md from the results of the kernels."""

from collections.abc import Callable, Sequence
from typing import Final

from nfq_guard.capabilities import NET_ADMIN
from nfq_guard.lab.addresses import PLANS
from nfq_guard.lab.outcome import Mitigation
from nfq_guard.lab.scenarios import SCENARIOS
from tests.kernels.outcome import TESTS, Outcome, Record
from tests.kernels.owners import SITUATIONS

_TRIALS: Final = len(SCENARIOS) * len(Mitigation) * len(PLANS)

_HEAD: Final = """\
# Distribution kernels

Written by `make kernels`, which boots Debian's kernels, and Ubuntu's if named, in QEMU (emulated,
two CPUs in one thread), with Debian 12 and its systemd, and runs on each of them:

- **fuzz**: random TCP segments through the kernel's conntrack and through our model of it, with the
  rules of the generation named. The ctstate, the reason in the kernel's log, and the state, status
  and timeout of the entry are compared, and every field of the window if BPF can read it;
- **window**: the tests of the window that BPF reads (`tests/flows/test_bpf.py`);
- **native**: the native nftables table, compared with no guard (`tests/kernels/native_rules.py`);
- **live**: tests of the queue, of ctnetlink, of the rules and of the daemon on this kernel, and the
  recorded traces of conntrack;
- **log**: the kernel's log as evidence (`tests/service/test_kernel_log_kernel.py`);
- **links**: translated connections over a link on which netem delays, reorders and doubles packets,
  also with RPS, and through a flowtable that is torn down; a packet that a port of a VRF receives
  (`tests/kernels/netem_and_flowtables.py`);
- **transfers**: 1,000 healthy transfers, in each mode of the guard and without it, over a link that
  netem makes bad (`tests/kernels/netem_transfers.py`);
- **owners**: Docker, firewalld and ufw, each with the rules that it installs
  (`tests/kernels/owners.py`);
- **container**: the guard as a Docker container, started by the commands of its README, with a port
  that Docker publishes (`tests/kernels/container.py`);
- **service**: the service, installed from wheels by `systemd/install.sh`
  (`tests/systemd/test_service.py`): its privileges, its pins, a connection of the lab that it
  saves, reload, watchdog, `kill -9`, and what a stop leaves behind;
- **lab**: trials, each a scenario with a mitigation in IPv4 or IPv6.

`make kernels` runs 1,000,000 packets a kernel, or `PACKETS`, and all tests and trials, which takes
hours; `make kernels-short` runs a few of each and does not change this page. Single steps can be
run with, for example, `.venv/bin/python -m tests.kernels --page --kernel 5.15 --step fuzz`. The
tables show the last results of each step, which are kept in `docs/kernels.jsonl`.

"""
_OWNERS: Final = """
## Programs that install rules

Each connection gets segments that conntrack calls INVALID, as in the lab. If it survived without
the guard, the program itself drops such packets: firewalld also forwarded ones, ufw only those to
the host itself.

| program | connection | without the guard | with it | shown on |
| --- | --- | --- | --- | --- |
"""
_TRANSFERS: Final = """
## Healthy transfers

In enforce, none may break. Goodput is the median of four rounds, the time the 99th percentile. The
emulated CPU limits both, and differs from round to round, as the two runs without a guard show:
`make faults` compares them on a machine that is not emulated ([faults.md](faults.md), T1).

| kernel | transfers | measured |
| --- | --- | --- |
"""
_HEAD_OF_RUNS: Final = """
## When each was run

The commit that ran each step, and how long it took in the emulated machine.

"""
_TAIL: Final = """
## What the kernels represent

5.14 and 5.19 are Ubuntu's, no longer maintained, and represent their generations of conntrack. RHEL
9 has a 5.14 too, with changes of later kernels, and could not be run; on it, `nfq-guard doctor`
finds the generation by probing the running kernel. 5.15 is that of Ubuntu 22.04, 6.8 that of 24.04.
"""


def _step(name: str, key: str, *, absent: str = "-") -> Callable[[Outcome], str]:
    """A cell with the report of a step."""
    return lambda outcome: str(outcome.steps.get(name, {}).get(key, absent))


def _tests(name: str) -> Callable[[Outcome], str]:
    """A cell with the results of tests, and whether they were the short form."""

    def cell(outcome: Outcome) -> str:
        summary = _step(name, "summary", absent="not run")(outcome)
        is_short = name in outcome.short and summary != "not run"
        return f"{summary} (short form)" if is_short else summary

    return cell


def _kernel(outcome: Outcome) -> str:
    release = outcome.steps.get("kernel", {}).get("release", outcome.name)
    return f"{release} ({outcome.version})"


def _capabilities(outcome: Outcome) -> str:
    held = outcome.steps.get("service", {}).get("capabilities")
    if held == 1 << NET_ADMIN:
        return "CAP_NET_ADMIN alone"
    return "-" if held is None else f"{held:#x}"


def _fuzz(outcome: Outcome) -> Record:
    return outcome.steps.get("fuzz", {})


def _run(name: str) -> Callable[[Outcome], str]:
    """A cell with the state of the tree that ran a step, and the duration."""

    def cell(outcome: Outcome) -> str:
        seconds = outcome.steps.get(name, {}).get("seconds")
        if seconds is None:
            return "-"
        return f"{outcome.trees[name]}, {seconds / 60:.1f} min"

    return cell


Column = tuple[str, Callable[[Outcome], str]]

_SEEN: Final[tuple[Column, ...]] = (
    ("kernel", _kernel),
    ("generation", _step("kernel", "rules")),
    ("evidence as root", _step("evidence", "evidence")),
    ("evidence as installed", _step("service", "installed_evidence")),
    ("capabilities as installed", _capabilities),
)
_FOUND: Final[tuple[Column, ...]] = (
    ("kernel", lambda outcome: outcome.name),
    ("fuzzed packets", lambda outcome: f"{_fuzz(outcome).get('packets', 0):,}"),
    ("mismatches", lambda outcome: str(len(_fuzz(outcome).get("mismatches", ())))),
    ("window compared", lambda outcome: "yes" if _fuzz(outcome).get("windows") else "no"),
    *((name, _tests(name)) for name in TESTS),
    ("lab trials", lambda outcome: f"{len(outcome.trials)} of {_TRIALS}"),
    ("not as expected", lambda outcome: str(len(outcome.unexpected()))),
)
_RUNS: Final[tuple[Column, ...]] = (
    ("kernel", lambda outcome: outcome.name),
    *((name, _run(name)) for name in ("fuzz", *TESTS, "transfers")),
    ("lab", _run("matrix")),
)


def render(outcomes: Sequence[Outcome], seed: int) -> str:
    """The page, for a run with the fuzz seed `seed`."""
    notes = [
        f"- {outcome.name}, {name}: not run: {said}\n"
        for outcome in outcomes
        for name in TESTS
        if (said := outcome.steps.get(name, {}).get("not_run"))
    ]
    notes += [f"- {outcome.name}: {line}\n" for outcome in outcomes for line in outcome.problems()]
    return "".join(
        (
            *(_HEAD, _table(_SEEN, outcomes), "\n", _table(_FOUND, outcomes)),
            *(f"\nSeed of the fuzz: {seed}.\n\n", *notes),
            *(_transfers(outcomes), _owners(outcomes)),
            *(_HEAD_OF_RUNS, _table(_RUNS, outcomes), _TAIL),
        )
    )


def _transfers(outcomes: Sequence[Outcome]) -> str:
    """How healthy connections fared on the kernels, if that step was run."""
    found = [(one.name, one.steps.get("transfers", {})) for one in outcomes]
    rows = "".join(
        f"| {name} | {step['injected']} | {step['measured']} |\n"
        for name, step in found
        if "met" in step
    )
    return f"{_TRANSFERS}{rows}" if rows else ""


def _owners(outcomes: Sequence[Outcome]) -> str:
    """The outcomes of connections through the rules of other programs, if that step was run."""
    names = [outcome.name for outcome in outcomes if outcome.steps.get("owners", {}).get("passed")]
    if not names:
        return ""
    rows = "".join(
        f"| {one.owner} | {one.connection} | {one.without} | {one.with_guard} | "
        f"{', '.join(names)} |\n"
        for one in SITUATIONS
    )
    return f"{_OWNERS}{rows}"


def _table(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> str:
    rows = [[title for title, _ in columns], ["---"] * len(columns)]
    rows += [[cell(outcome) for _, cell in columns] for outcome in outcomes]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
