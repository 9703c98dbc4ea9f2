# SPDX-License-Identifier: MIT
"""The results of a run on one kernel, and its failures."""

from dataclasses import dataclass, field
from typing import Any, Final, Self

# Expected evidence of the guard, as root and as installed. If a kernel gives better, update this.
EVIDENCE: Final = {
    **dict.fromkeys(("5.10", "5.14", "5.15"), "kernel-log"),
    **dict.fromkeys(("5.19", "6.1", "6.8", "6.12", "7"), "bpf"),
}
_WORSE_TO_BETTER: Final = ("none", "ctnetlink", "kernel-log", "bpf")
# Steps that run tests, by subject.
TESTS: Final = {
    "window": "the window",
    "native": "the native table",
    "live": "queue, evidence, rules and daemon",
    "log": "the kernel's log as evidence",
    "links": "netem and flowtables",
    "owners": "Docker, firewalld and ufw",
    "container": "the guard as a container of Docker",
    "service": "the service",
}

Record = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """The reports of one kernel.

    Attributes:
        name: Name of the kernel.
        version: Version of its Debian package.
        seconds: From power on to power off.
        wanted: The requested steps, of one run or several.
        steps: The last report of each step, by its name.
        short: Steps that last ran in the short form.
        trials: The lab's results.
        failed: Steps that did not complete, and why.
        trees: The state of the tree that ran each step last, by its commit.
        ended: Whether the job ran to its end.
    """

    name: str
    version: str
    seconds: float = 0
    wanted: list[str] = field(default_factory=list)
    steps: dict[str, Record] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)
    trials: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    trees: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    def add(self, record: Record) -> None:
        """Process one line of the machine's report."""
        step = record["step"]
        if step == "begin":
            self._begin(record["wanted"], record["tree"], is_short=record["short"])
        elif step == "end":
            self.ended = True
        elif "failed" in record:
            self.failed[step] = record["failed"]
        elif "scenario" in record:
            self.trials.append(record)
        else:
            self.steps.setdefault(step, {}).update(record)

    def _begin(self, wanted: list[str], tree: str, *, is_short: bool) -> None:
        self._forget(wanted)
        self.trees.update(dict.fromkeys(wanted, tree))
        self.ended = False
        if is_short:
            self.short.update(wanted)

    def _forget(self, wanted: list[str]) -> None:
        """Discard earlier results of these steps."""
        self.wanted = list(dict.fromkeys((*self.wanted, *wanted)))
        self.short.difference_update(wanted)
        for name in wanted:
            self.steps.pop(name, None)
            self.failed.pop(name, None)
        if "matrix" in wanted:
            self.trials.clear()

    def take_over(self, later: Self) -> None:
        """Replace the results of the steps that a later run repeated."""
        self._forget(later.wanted)
        self.steps.update(later.steps)
        self.short.update(later.short)
        self.trials.extend(later.trials)
        self.failed.update(later.failed)
        self.trees.update(later.trees)
        self.ended = later.ended

    def problems(self) -> list[str]:
        """One line for each failure."""
        found = [f"{step} failed: {why}" for step, why in self.failed.items()]
        if not self.ended:
            found.append("the job did not come to its end; its console has the reason")
        missing = [
            name for name in self.wanted if len(self.steps.get(name, ())) <= len(("step", "s"))
        ]
        found += [f"{name} was not run" for name in missing if name not in self.failed]
        rank = _WORSE_TO_BETTER.index
        for name, key in (("evidence", "evidence"), ("service", "installed_evidence")):
            evidence = self.steps.get(name, {}).get(key, "none")
            if name in self.wanted and rank(evidence) < rank(EVIDENCE[self.name]):
                why = self.steps.get(name, {}).get("why")
                found.append(f"{name}: {evidence}, and was {EVIDENCE[self.name]}: {why}")
        found += [
            f"fuzz: {'; '.join(what)}" for what in self.steps.get("fuzz", {}).get("mismatches", ())
        ]
        for name, what in TESTS.items():
            tests = self.steps.get(name, {})
            if not tests.get("passed", True):
                found.append(f"tests of {what}: {tests['summary']}")
                found += [f"tests of {what}: {line}" for line in tests["bad"]]
        transfers = self.steps.get("transfers", {})
        if not transfers.get("met", True):
            found.append(f"transfers: {transfers['measured']}")
        found += [
            f"{trial['scenario']} with {trial['mitigation']}, IPv{trial['family']}: "
            f"{trial['outcome']}, expected {trial['expected']}"
            for trial in self.unexpected()
        ]
        status = self.steps.get("matrix", {}).get("status", 0)
        if status and not self.unexpected():
            found.append(f"the lab ended with status {status}")
        return found

    def unexpected(self) -> list[Record]:
        """Trials whose outcome is not the expected one."""
        return [trial for trial in self.trials if trial["outcome"] != trial["expected"]]

    def __str__(self) -> str:
        """The outcome in one line."""
        fuzz = self.steps.get("fuzz", {})
        return (
            f"evidence {self.steps.get('evidence', {}).get('evidence')}, "
            f"{fuzz.get('packets', 0)} packets, {len(fuzz.get('mismatches', ()))} mismatches, "
            f"{len(self.trials)} trials, {len(self.unexpected())} not as expected, "
            f"{self.seconds:.0f} s"
        )
