# SPDX-License-Identifier: MIT
"""Looks flows up through BPF, with the kernel's own TCP window, one call a batch (kernel.md 4).

The kernel's lookup function supports only TCP and UDP; other protocols go to `ctnetlink`.
"""

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, final

from nfq_guard.errors import UnavailableError
from nfq_guard.flow import (
    IPS_SEQ_ADJUST,
    PROTO_TCP,
    PROTO_UDP,
    Evidence,
    FlowSnapshot,
    FlowTuple,
    LookupResult,
)
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.exchange import BATCH, EXCHANGE_SIZE, HEADER, Exchange
from nfq_guard.flows.libbpf import Program

_OBJECT: Final = Path(__file__).with_name("ct_lookup.bpf.o")
_PROGRAM: Final = "ct_lookup"
_OPTIONS_WITH_ZONE: Final = 16
# CLOCK_MONOTONIC_COARSE advances with the kernel's tick, so its resolution is one tick.
_CLOCK_OF_TICKS: Final = 6


def ticks_per_second() -> int:
    """The running kernel's HZ."""
    return round(1 / time.clock_getres(_CLOCK_OF_TICKS))


def load(image: bytes | None = None) -> Program:
    """Load our BPF program.

    Args:
        image: The object file; the committed one unless given.

    Raises:
        LoadError: The kernel or libbpf refused it.
    """
    return Program.load(image or _OBJECT.read_bytes(), _PROGRAM, EXCHANGE_SIZE)


def object_hash() -> str:
    """A digest that differs between any two versions of the committed object."""
    return hashlib.sha256(_OBJECT.read_bytes()).hexdigest()[:16]


class LoadedProgram(Protocol):
    """The part of `libbpf.Program` that a lookup uses."""

    memory: mmap.mmap
    run: Callable[[], int]

    def close(self) -> None:
        """Unload it."""


@final
class BpfFlows:
    """`engine.FlowLookup` on the flow table of the calling thread's network namespace.

    Not thread-safe, and not for both sides of a fork, which would share its memory. `load` needs
    capabilities; lookups need none.
    """

    evidence: Final = Evidence.BPF

    def __init__(
        self,
        zones: Sequence[int] = (0,),
        *,
        others: CtnetlinkFlows | None = None,
        program: LoadedProgram | None = None,
    ) -> None:
        """Load the program and test it.

        Args:
            zones: Conntrack zones to try for each tuple, in order; at least one.
            others: Looks up tuples of other protocols than TCP and UDP; without it their lookup
                fails. Closed with this, but not if the construction fails.
            program: Closed with this, also if the construction fails; `load()` unless given.

        Raises:
            LoadError: The kernel or libbpf refused the program.
            OSError: The kernel refused to run it.
            UnavailableError: A zone other than 0 was requested from a kernel before 6.11.
        """
        self._zones = tuple(zones)
        self._others = others
        self._program = program or load()
        memory = self._program.memory
        HEADER.pack_into(memory, 0, 0, ticks_per_second(), 0)
        self._exchange = Exchange(memory, self._program.run)
        # An empty run shows whether the kernel runs the program, and the size of its options.
        code = self._program.run()
        if code < 0:
            self._program.close()
            raise OSError(-code, f"BPF_PROG_TEST_RUN: {os.strerror(-code)}")
        (_, _, options_size) = HEADER.unpack_from(memory)
        if any(self._zones) and options_size < _OPTIONS_WITH_ZONE:
            self._program.close()
            raise UnavailableError(
                "BPF lookup in conntrack zones other than 0 needs kernel 6.11 or later"
            )

    def lookup(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        """One result a tuple, in order."""
        if len(tuples) <= BATCH:
            return self._batch(tuples)
        results: list[LookupResult] = []
        for start in range(0, len(tuples), BATCH):
            results += self._batch(tuples[start : start + BATCH])
        return results

    def _batch(self, tuples: Sequence[FlowTuple]) -> list[LookupResult]:
        results = self._exchange.ask(tuples, self._zones[0])
        shifted = self._exchange.shifted
        if self._exchange.missing:
            shifted += self._ask_again(tuples, results)
        if shifted and self._others is not None:
            self._add_shifts(tuples, results, self._others)
        return results

    def _add_shifts(
        self, tuples: Sequence[FlowTuple], results: Sequence[LookupResult], others: CtnetlinkFlows
    ) -> None:
        """Add how conntrack shifts the sequence numbers of flows, which BPF does not read."""
        shifted = [
            index
            for index, result in enumerate(results)
            if isinstance(result, FlowSnapshot) and result.status & IPS_SEQ_ADJUST
        ]
        found = others.lookup([tuples[index] for index in shifted])
        for index, other in zip(shifted, found, strict=True):
            result = results[index]
            if (
                isinstance(result, FlowSnapshot)
                and isinstance(other, FlowSnapshot)
                and (result.original, result.zone) == (other.original, other.zone)
            ):
                result.shifts = other.shifts

    def _ask_again(self, tuples: Sequence[FlowTuple], results: list[LookupResult]) -> int:
        """Look up missing tuples in the other zones, and tuples that BPF cannot look up elsewhere.

        A lookup that failed in one zone has failed unless another zone has the entry. Returns the
        number of flows of other zones whose sequence numbers conntrack shifts.
        """
        shifted = 0
        missing: list[int] = []
        foreign: list[int] = []
        for index, result in enumerate(results):
            if not isinstance(result, FlowSnapshot):
                proto = tuples[index].proto
                (missing if proto in {PROTO_TCP, PROTO_UDP} else foreign).append(index)
        for zone in self._zones[1:]:
            if not missing:
                break
            again = self._exchange.ask([tuples[index] for index in missing], zone)
            shifted += self._exchange.shifted
            left: list[int] = []
            for index, result in zip(missing, again, strict=True):
                if result is not None:
                    results[index] = result
                if not isinstance(result, FlowSnapshot):
                    left.append(index)
            missing = left
        if foreign and self._others is not None:
            others = self._others.lookup([tuples[index] for index in foreign])
            for index, result in zip(foreign, others, strict=True):
                results[index] = result
        return shifted

    def close(self) -> None:
        """Unload the program; `lookup` must not be called afterwards."""
        self._program.close()
        if self._others is not None:
            self._others.close()
