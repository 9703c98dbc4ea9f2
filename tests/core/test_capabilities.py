# SPDX-License-Identifier: MIT
"""Capabilities by name."""

import os
import resource
import sys
from pathlib import Path

import pytest

from nfq_guard import capabilities
from nfq_guard.lab.netns import Namespace


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


@pytest.mark.kernel
@pytest.mark.parametrize(("options", "counts"), [("-Ur", False), ("-Urn", True)])
def test_they_count_in_a_network_of_ones_own_user_namespace(
    options: str, counts: bool, tmp_path: Path
) -> None:
    """A rootless container with the network of the host holds CAP_NET_ADMIN in vain."""
    config = tmp_path / "c.toml"
    config.write_text(
        f'[daemon]\nrules = "none"\nqueue = 7\ncontrol_socket = "{tmp_path}/s"\n', encoding="utf-8"
    )
    with Namespace("user") as space:
        ended = space.run(
            *("unshare", options, "timeout", "-s", "INT", "3", sys.executable, "-m", "nfq_guard"),
            *("run", "--config", str(config)),
            check=False,
        )
    if counts:
        assert '"started"' in ended.stdout
    else:
        assert ended.returncode == 77
        assert "CAP_NET_ADMIN does not count here" in ended.stderr
        assert "\n" not in ended.stderr.strip()


def test_names() -> None:
    mask = 1 << capabilities.NET_RAW | 1 << capabilities.NET_ADMIN | 1 << 40
    assert capabilities.names(mask) == ["CAP_NET_ADMIN", "CAP_NET_RAW", "capability 40"]
    assert capabilities.names(0) == []
