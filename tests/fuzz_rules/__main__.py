# SPDX-License-Identifier: MIT
"""Fuzzes the doctor with rule sets: `python -m tests.fuzz_rules --sets 2000 --seed 1`, as root.

Each is loaded into a namespace, and an INVALID packet and its twin of a known connection are sent
through it. The findings of the doctor are compared with the fate of the packets. Exit status 1 when
they differ; each such rule set is printed.
"""

import argparse
import random
import sys
from typing import Final

from tests.fuzz_rules.compare import Router, Tally, compare
from tests.fuzz_rules.generate import rule_set
from tests.support.root import require_root

_GIVE_UP_AFTER: Final = 20


def run(sets: int, seed: int, first: int = 0) -> Tally:
    """Compare that many rule sets."""
    tally = Tally()
    number = first
    with Router() as router:
        while tally.compared < sets and len(tally.failures) < _GIVE_UP_AFTER:
            rng = random.Random(f"{seed} {number}")  # noqa: S311 - not for secrets
            known = len(tally.failures)
            compare(router, rule_set(rng), rng.choice((4, 6)), tally)
            if len(tally.failures) > known:
                tally.failures[-1] = f"### seed {seed}, rule set {number}: {tally.failures[-1]}"
            number += 1
    return tally


def main() -> int:
    """Run, and print the differences."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_rules", description=__doc__)
    parser.add_argument("--sets", type=int, default=2000, help="how many, in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="where to take a run up again")
    args = parser.parse_args()
    require_root("fuzz_rules")
    tally = run(args.sets, args.seed, args.first)
    for failure in tally.failures:
        sys.stdout.write(f"{failure}\n\n")
    for outcome, count in tally.outcomes.most_common():
        sys.stdout.write(f"{count:6} INVALID {outcome.invalid}, known {outcome.known}\n")
    done = f"{tally.compared} rule sets compared, {tally.refused} refused"
    sys.stdout.write(f"{done}, {len(tally.failures)} differ\n")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
