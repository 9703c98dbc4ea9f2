# SPDX-License-Identifier: MIT
"""The kernel that `--kernel` names: a generation, a release, or the running kernel."""

import os
import sys
from typing import Final

from nfq_guard.cli.terminal import paint
from nfq_guard.conntrack.kernel_rules import KERNELS, KernelGuess, guess_rules
from nfq_guard.errors import UsageError
from nfq_guard.names import visible
from nfq_guard.probe.recognise import LIVE, recognise
from nfq_guard.telemetry.palette import Style

HELP: Final = (
    f"{', '.join(KERNELS)}, a release such as 5.15.0-91-generic, or {LIVE}, which probes the "
    "running kernel with a few packets in a temporary network namespace, as root"
)


def kernel_of(name: str) -> KernelGuess:
    """The rules of the kernel `name`; warns if they are a guess.

    Raises:
        NfqGuardError: `name` is not a kernel, or the running kernel cannot be examined.
    """
    if name != LIVE:
        try:
            guess = guess_rules(name)
        except UsageError as error:
            problem = str(error).removeprefix("kernel release: ")
            raise UsageError(f"--kernel: {problem}") from None
        if guess.doubt:
            warn(f"--kernel {name}: the rules of {guess.rules.name} are a guess: {guess.doubt}")
        return guess
    # Imported here: the probe of the running kernel takes as long to load as a short replay.
    from nfq_guard.probe.live import ask  # noqa: PLC0415

    found = recognise(ask())
    log = guess_rules(os.uname().release).log
    doubt = ""
    if found.unexplained:
        doubt = (
            f"the running kernel follows no known generation, nearest {found.nearest.name}, in: "
            f"{', '.join(found.unexplained)}"
        )
        warn(f"--kernel {name}: {doubt}")
    return KernelGuess(found.rules, log, doubt)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    words = paint("warning:", Style.YELLOW, stream=sys.stderr)
    sys.stderr.write(f"nfq-guard: {words} {visible(message)}\n")
