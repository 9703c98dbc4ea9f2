# SPDX-License-Identifier: MIT
"""Compares the cost of a flow lookup in each source of evidence."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import contenders
from benchmarks.path import FLOWS
from benchmarks.rows import Results
from benchmarks.site import INVALID, REPO, Site

SECTION: Final = "evidence"
LOOKUP: Final = "CPU a lookup"
JUDGEMENT: Final = "CPU a judgement"
_LOOP: Final = Path(__file__).parent / "peers" / "lookups.py"
# Source, and tuples per call.
_KINDS: Final = (("bpf", 1), ("bpf", 32), ("bpf", 64), ("ctnetlink", 1), ("none", 64))


def run(results: Results, say: Callable[[str], None], *, quick: bool) -> None:
    """Run this section."""
    rounds = 1 if quick else 5
    trees = [(contenders.GUARD, contenders.COMPILED), (contenders.GUARD_PURE, REPO)]
    with Site() as site:
        site.iptables("-t", "mangle", "-A", "PREROUTING", *INVALID)
        site.open_flows(FLOWS)
        for _ in range(rounds):
            for name, tree in trees:
                if not tree.exists():
                    results.missing(SECTION, name, "`make compiled` has not been run")
                    continue
                for kind, batch in _KINDS:
                    _once(site, results, say, name, tree, kind, batch)


def _once(
    site: Site,
    results: Results,
    say: Callable[[str], None],
    name: str,
    tree: Path,
    kind: str,
    batch: int,
) -> None:
    variant = f"{kind}, {batch} a call; {name}"
    words = ["env", "-C", str(tree), f"PYTHONPATH={tree}", sys.executable, str(_LOOP), kind]
    try:
        done = site.router.run(*words, str(batch))
    except subprocess.CalledProcessError as error:
        results.missing(SECTION, variant, error.stderr.strip().splitlines()[-1])
        return
    measured = json.loads(done.stdout)
    say(f"evidence, {variant}: {measured}")
    if kind != "none":
        results.add(SECTION, variant, LOOKUP, "us", measured["lookup_us"])
    results.add(SECTION, variant, JUDGEMENT, "us", measured["judgement_us"])
