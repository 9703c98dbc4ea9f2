# SPDX-License-Identifier: MIT
"""Capabilities by name."""

import os
import resource
from pathlib import Path

from nfq_guard import capabilities


def test_they_are_those_of_the_thread() -> None:
    lines = Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines()
    (shown,) = (line.split()[1] for line in lines if line.startswith("CapEff:"))
    assert capabilities.effective() == int(shown, 16)


def test_they_are_known_without_a_free_descriptor() -> None:
    """Or the daemon would end, because it believes that it lost its privileges."""
    before = capabilities.effective()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry) for entry in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
    taken = [os.dup(0) for _ in range(highest)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, limits[1]))
    try:
        assert capabilities.effective() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def test_names() -> None:
    mask = 1 << capabilities.NET_RAW | 1 << capabilities.NET_ADMIN | 1 << 40
    assert capabilities.names(mask) == ["CAP_NET_ADMIN", "CAP_NET_RAW", "capability 40"]
    assert capabilities.names(0) == []
