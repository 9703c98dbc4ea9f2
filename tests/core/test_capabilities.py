# SPDX-License-Identifier: MIT
"""Capabilities by name."""

from nfq_guard import capabilities


def test_names() -> None:
    mask = 1 << capabilities.NET_RAW | 1 << capabilities.NET_ADMIN | 1 << 40
    assert capabilities.names(mask) == ["CAP_NET_ADMIN", "CAP_NET_RAW", "capability 40"]
    assert capabilities.names(0) == []
