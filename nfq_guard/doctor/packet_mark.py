# SPDX-License-Identifier: MIT
"""The packet's mark on its way: of an INVALID segment, and of its twin of a known connection.

Rules that select by conntrack state can give the two different marks, and a later rule that tests
the mark then selects by the state as well.
"""

from typing import NamedTuple, final

from nfq_guard.doctor.rule_model import ALL_BITS, Condition, MarkTest, MarkWrite, Truth


@final
class Bits(NamedTuple):
    """What is known of a mark: its bits under `mask` are those of `value`."""

    mask: int = 0
    value: int = 0

    def after(self, write: MarkWrite) -> "Bits":
        """The mark after a write."""
        mask = (self.mask & write.keep) | (ALL_BITS & ~(write.keep | write.unknown))
        return Bits(mask, ((self.value & write.keep) ^ write.flip) & mask)

    def either(self, other: "Bits") -> "Bits":
        """What is known of a mark that is one of two."""
        mask = self.mask & other.mask & ~(self.value ^ other.value)
        return Bits(mask, self.value & mask)

    def meets(self, test: MarkTest) -> Truth:
        """Whether the mark passes a test."""
        if test.opaque:
            return Truth.DEPENDS
        known = self.mask & test.mask
        low = self.value & known
        high = low | (test.mask & ~known)
        wanted = [*test.ranges, *((value, value) for value in test.values)]
        possible = any(
            start <= high and low <= end and (start != end or (start ^ low) & known == 0)
            for start, end in wanted
        )
        sure = any(start <= low and high <= end for start, end in wanted)
        found = Truth.YES if sure else Truth.DEPENDS if possible else Truth.NO
        return Truth(Truth.YES - found) if test.negated else found


@final
class Marks(NamedTuple):
    """The marks of both packets at a place on their way.

    Attributes:
        invalid: That of the INVALID segment; None where it does not get.
        known: That of the packet of a known connection; None where it does not get.
        differ: The bits in which the two may differ because of the conntrack state.
        restored: Those of them that the known packet may have from its connection's mark.
    """

    invalid: Bits | None = Bits()
    known: Bits | None = Bits()
    differ: int = 0
    restored: int = 0

    def either(self, other: "Marks | None") -> "Marks":
        """What is known where packets of two ways meet."""
        if other is None:
            return self
        return Marks(
            _either(self.invalid, other.invalid),
            _either(self.known, other.known),
            self.differ | other.differ,
            self.restored | other.restored,
        )

    def after(self, write: MarkWrite, when: Condition) -> "Marks":
        """The marks after a rule that writes the mark under a condition."""
        invalid, known = when.truth, when.known_truth
        same = invalid is known and not when.state and self.known is not None
        differ = self.differ if same else self.differ | write.bits
        restored = self.restored
        if same and invalid is Truth.YES:
            differ, restored = differ & write.keep, restored & write.keep
        return Marks(
            _written(self.invalid, write, invalid),
            _written(self.known, write, known),
            differ,
            restored,
        )

    def with_restored(self, bits: int) -> "Marks":
        """The marks after the known packet got these bits from its connection."""
        known = None if self.known is None else Bits(self.known.mask & ~bits, self.known.value)
        return Marks(self.invalid, known, self.differ | bits, self.restored | bits)

    def that_differ(self, bits: int) -> "Marks":
        """The marks, of which these bits may differ because of the state."""
        return self._replace(differ=self.differ | bits)

    def of(self, when: Condition) -> "Marks | None":
        """The marks of those packets that meet a condition; None if none does."""
        invalid = None if when.truth is Truth.NO else self.invalid
        known = None if when.known_truth is Truth.NO else self.known
        if invalid is None and known is None:
            return None
        return Marks(invalid, known, self.differ, self.restored)

    def without(self, when: Condition) -> "Marks":
        """The marks of those packets that may not meet a condition."""
        return self._replace(
            invalid=None if when.truth is Truth.YES else self.invalid,
            known=None if when.known_truth is Truth.YES else self.known,
        )

    def alike(self) -> "Marks":
        """The marks where conntrack has seen neither of the packets."""
        return self._replace(known=self.invalid)

    def vague(self) -> "Marks":
        """The marks with nothing known but whether they may differ."""
        return Marks(differ=ALL_BITS if self.differ else 0, restored=self.restored)

    def under(self, when: Condition) -> Condition:
        """A condition, with the tests of the mark in it decided."""
        if not when.marks:
            return when
        invalid = [(self.invalid or Bits()).meets(test) for test in when.marks]
        known = invalid
        if self.known is not None:
            known = [self.known.meets(test) for test in when.marks]
        differs = invalid != known or any(
            test.mask & self.differ & ~self.restored or self._lacks_restored(test)
            for test in when.marks
        )
        mixed = differs or any(test.mask & self.differ for test in when.marks)
        met = {test.on for test, truth in zip(when.marks, invalid, strict=True) if truth == 2}
        on = tuple(word for word in when.on if word not in met)
        truth = min(when.truth, *invalid)
        if truth is not Truth.NO:
            truth = Truth.DEPENDS if on else Truth.YES
        tracked, known_truth = when.tracked, min(when.known_truth, *known)
        if known_truth is not Truth.NO:
            met = {test.on for test, each in zip(when.marks, known, strict=True) if each == 2}
            words = tuple(
                word for word in (when.on if tracked is None else tracked) if word not in met
            )
            known_truth = Truth.DEPENDS if words else Truth.YES
            tracked = words if mixed or tracked is not None else None
        elif Truth.NO in known:
            tracked = None
        return Condition(
            truth,
            on if truth is Truth.DEPENDS else (),
            when.state or differs,
            tracked=tracked,
            lost=when.lost,
            known=known_truth,
        )

    def _lacks_restored(self, test: MarkTest) -> bool:
        """Whether a mark that nothing has written passes a test, and that of a connection may not.

        The mark of a packet that comes from an interface is 0, unless something outside of the
        rules, such as a filter of tc, has written it.
        """
        if self.invalid is None or self.known is None or not test.mask & self.restored:
            return False
        unwritten = Bits(ALL_BITS, self.invalid.value)
        return unwritten.meets(test) is Truth.YES and self.known.meets(test) is not Truth.YES


def _either(one: Bits | None, other: Bits | None) -> Bits | None:
    if one is None or other is None:
        return one or other
    return one.either(other)


def _written(bits: Bits | None, write: MarkWrite, truth: Truth) -> Bits | None:
    if bits is None or truth is Truth.NO:
        return bits
    after = bits.after(write)
    return after if truth is Truth.YES else bits.either(after)
