# SPDX-License-Identifier: MIT
"""Injects faults into the guard on the live kernel and measures what they cost: `make faults`.

Exit status 1 if the counts do not agree to the packet, or if a closed guard let packets through. A
missed time target does not fail the run; the table shows it. Needs root, and `make wheels` for the
faults of the service, which run under a separate systemd.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.faults import daemon, page, rig, service
from tests.faults.outcome import Outcome
from tests.support.root import require_root

_PAGE: Final = Path(__file__).parents[2] / "docs" / "faults.md"


def main() -> int:
    """Inject the requested faults, print each outcome, and write the page if requested."""
    names = [*daemon.FAULTS, *service.FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="each a few times, about a minute")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--soak", type=int, metavar="SECONDS", help="the time of the soak")
    parser.add_argument("--page", action="store_true", help="write docs/faults.md")
    parser.add_argument("--no-systemd", action="store_true", help="leave the service out")
    parser.add_argument("--fault", action="append", choices=names, help="only these")
    args = parser.parse_args()
    require_root("faults")
    wanted = args.fault or [
        name for name in names if not (args.no_systemd and name in service.FAULTS)
    ]
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    crashed = 0
    size = rig.SHORT if args.short else rig.LONG
    if args.soak:
        size = size._replace(soak_s=args.soak)
    for found in _outcomes(wanted, size, short=args.short, seed=args.seed):
        if found is None:
            crashed += 1
            continue
        outcomes.append(found)
        sys.stdout.write(f"{page.line(found)}\n")
        sys.stdout.flush()
    took = time.monotonic() - begun
    sys.stdout.write(f"{took:.0f} s, {sum(one.met for one in outcomes)} of {len(outcomes)} met\n")
    if args.page and not crashed:
        _PAGE.write_text(page.render(outcomes, args.seed, short=args.short), encoding="ascii")
    return 1 if crashed or any(one.exact is False for one in outcomes) else 0


def _outcomes(
    wanted: list[str], size: rig.Size, *, short: bool, seed: int
) -> Iterator[Outcome | None]:
    with tempfile.TemporaryDirectory(prefix="nfqg-faults-") as folder:
        for name in wanted:
            if name not in daemon.FAULTS:
                continue
            rng = random.Random(f"{seed} {name}")  # noqa: S311 - reproducible, no secret
            try:
                with rig.rig(Path(folder, name)) as at:
                    yield daemon.FAULTS[name](at, size, rng)
            except Exception:  # noqa: BLE001 - the other faults are still to be injected
                sys.stderr.write(f"{name}: {traceback.format_exc()}\n")
                yield None
    of_service = [name for name in wanted if name in service.FAULTS]
    if of_service:
        yield from service.outcomes(of_service, short=short)


if __name__ == "__main__":
    sys.exit(main())
