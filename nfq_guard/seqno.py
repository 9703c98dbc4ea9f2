# SPDX-License-Identifier: MIT
"""TCP sequence numbers: a circle of 2**32 on which order is local (RFC 1982, kernel.md 1.2).

A number comes before another when the way forward to it is at most half the circle, which is
what the kernel computes with a signed 32-bit difference. `<`, `max` and `-` on a `Seq` are
bugs: they give the wrong answer wherever a flow crosses 2**32.
"""

from typing import Final, NewType

Seq = NewType("Seq", int)

# For the packet path, where a call costs more than the operation.
MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000


def seq(number: int) -> Seq:
    """The sequence number that `number` falls on, however far off the circle it is."""
    return Seq(number & MASK)


def add(start: Seq, distance: int) -> Seq:
    """`start` moved by `distance` bytes, which may be negative."""
    return Seq((start + distance) & MASK)


def before(a: Seq, b: Seq) -> bool:
    """Whether `a` comes strictly before `b`, at most half the circle away."""
    return (a - b) & MASK >= HALF


def after(a: Seq, b: Seq) -> bool:
    """Whether `a` comes strictly after `b`: the mirror of `before`."""
    return (b - a) & MASK >= HALF


def distance(a: Seq, b: Seq) -> int:
    """Bytes from `b` to `a`: positive exactly when `after` holds; -2**31 + 1 to 2**31.

    Half the circle away, a number is both before and after the other, and 2**31 from it.
    """
    gap = (a - b) & MASK
    return gap if gap <= HALF else gap - MASK - 1


def later(a: Seq, b: Seq) -> Seq:
    """The one that comes after the other."""
    return a if after(a, b) else b
