# SPDX-License-Identifier: MIT
"""In the compiled tree the packet path is machine code; `make compiled` runs these there."""

import importlib
import importlib.machinery
import sys

import pytest

import nfq_guard

MODULES = [
    "nfq_guard.seqno",
    "nfq_guard.flow",
    "nfq_guard.finding",
    "nfq_guard.diagnose",
    "nfq_guard.engine",
    "nfq_guard.wire.ip",
    "nfq_guard.wire.tcp",
    "nfq_guard.conntrack.window",
    "nfq_guard.conntrack.tcp",
    "nfq_guard.conntrack.table",
    "nfq_guard.policy.decision",
    "nfq_guard.policy.matcher",
    "nfq_guard.flows.exchange",
    "nfq_guard.nfqueue.message",
    "nfq_guard.capture.pcap",
    "nfq_guard.capture.pcapng",
    "nfq_guard.replay.replayer",
]


COMPILED_TREE = "build/compiled" in nfq_guard.__path__[0]


@pytest.mark.parametrize("name", MODULES)
def test_what_is_compiled(name: str) -> None:
    """All of it in the compiled tree; none of it elsewhere, where it would hide its source."""
    importlib.import_module(name)
    origin = sys.modules[name].__file__
    assert origin is not None
    assert origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)) == COMPILED_TREE
