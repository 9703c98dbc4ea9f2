# SPDX-License-Identifier: MIT
"""Decodes random packets by the fast and by the reference decoder: `make fuzz-decode`.

Ends with status 1 at the first packet about which they do not agree.
"""

import argparse
import random
import sys
import time

from nfq_guard.wire.ip import decode
from nfq_guard.wire.packet import Packet
from tests.support import reference_decoder


def main() -> int:
    """Decode so many packets, and say how many of them were whole."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_decode", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--packets", type=int, default=1_000_000)
    args = parser.parse_args()
    rng = random.Random(args.seed)  # noqa: S311 - reproducible, no secret
    begun = time.monotonic()
    whole = 0
    for number in range(args.packets):
        octets = reference_decoder.packet(rng)
        fast = decode(octets)
        whole += isinstance(fast, Packet)
        different = reference_decoder.difference(octets, fast)
        if different:
            sys.stdout.write(f"packet {number} of seed {args.seed}: {different}\n")
            return 1
    took = time.monotonic() - begun
    sys.stdout.write(f"{args.packets} packets, {whole} well-formed, no difference, {took:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
