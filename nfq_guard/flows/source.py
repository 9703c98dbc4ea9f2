# SPDX-License-Identifier: MIT
"""Chooses the evidence of a queue, and follows the host's changes while the queue is served."""

import os
from collections.abc import Sequence
from typing import Final, final

from nfq_guard.conntrack.kernel_rules import guess_rules
from nfq_guard.errors import BusyError, NfqGuardError
from nfq_guard.flow import Evidence, EvidenceChoice
from nfq_guard.flows import log_settings, pins
from nfq_guard.flows.bpf import BpfFlows
from nfq_guard.flows.ctnetlink import CtnetlinkFlows
from nfq_guard.flows.kernel_log import KernelLog
from nfq_guard.flows.libbpf import LoadError, Program
from nfq_guard.flows.open import Lookup, open_lookup

ONE_QUEUE: Final = "the kernel's log serves one queue only"
# Turns between two searches for a program that root has pinned.
_PINS_TURNS: Final = 10
_CHOSEN: Final = "chosen by the setting `evidence`"
_NO_WINDOW: Final = "the kernel's window cannot be read"


@final
class EvidenceSource:
    """The evidence of one queue.

    Attributes:
        flows: Looks flows up.
        log: The kernel's log, where `flows` has no window and the kernel logs; else None.
        reason: Why there is no better evidence; None if there is none.
        note: A note for the operator at the start; None without one.
    """

    def __init__(
        self,
        choice: EvidenceChoice,
        *,
        zones: Sequence[int],
        instance: str,
        ahead: Program | str | None = None,
        queues: int = 1,
    ) -> None:
        """Open the best evidence of this host that `choice` allows.

        Args:
            choice: The setting.
            zones: As `open_lookup` takes them.
            instance: As `open_lookup` takes it.
            ahead: As `open_lookup` takes it.
            queues: Number of the daemon's queues. The log has one reader, so it serves one queue.
        """
        self._zones = zones
        self._instance = instance
        self._queues = queues
        self._wants_window = choice in {"auto", "bpf"}
        self._wants_log = choice in {"auto", "kernel-log"}
        self._turns = 0
        self.log: KernelLog | None = None
        self.flows: Lookup
        if self._wants_window:
            self.flows, self._without = open_lookup(zones, instance, ahead)
        else:
            self.flows, self._without = open_lookup(zones, ahead=_CHOSEN)
        self.reason = None if self.flows.evidence is Evidence.BPF else self._without
        self.follow()
        self.note = self._without if self.reason is None else self.reason

    @property
    def evidence(self) -> Evidence:
        """Where flows are looked up."""
        return self.flows.evidence if self.log is None else Evidence.KERNEL_LOG

    def follow(self) -> None:
        """Update the attributes to the state of the host; the caller closes a log that is replaced.

        Called about once a second. The window is the best evidence, and stays readable.
        """
        netlink = self.flows
        if not isinstance(netlink, CtnetlinkFlows):
            return
        if self._turns % _PINS_TURNS == 0 and self._turns and self._wants_window:
            pinned = self._pinned(netlink)
            if pinned is not None:
                self.flows = pinned
                self.log = None
                self.reason = None
                return
        self._turns += 1
        obstacle = self._use_log() if self._wants_log else None
        what = _NO_WINDOW if self.log is not None else f"{_NO_WINDOW}, only state and translation"
        self.reason = f"{what}: {self._without}" + ("" if obstacle is None else f"; {obstacle}")

    def _pinned(self, netlink: CtnetlinkFlows) -> BpfFlows | None:
        """The lookup by a program that root has pinned meanwhile."""
        try:
            program = pins.open_pinned(self._instance)
            if program is None:
                return None
            return BpfFlows(self._zones, others=netlink, program=program)
        except (NfqGuardError, LoadError, OSError):
            return None

    def _use_log(self) -> str | None:
        """Open, keep or close the log. Returns the reason why there is none, else None."""
        if self._queues > 1:
            return ONE_QUEUE
        obstacle = log_settings.obstacle(self._instance)
        if obstacle is not None:
            self.log = None
        elif self.log is None:
            try:
                self.log = KernelLog(guess_rules(os.uname().release), log_settings.is_on)
            except BusyError as error:
                # Another program bound the group between root's step and this one.
                return f"{error}; `nfq-guard prepare` as root turns the kernel's log off for it"
            except NfqGuardError as error:
                return str(error)
        return obstacle

    def close(self) -> None:
        """Close everything."""
        if self.log is not None:
            self.log.close()
        self.flows.close()
