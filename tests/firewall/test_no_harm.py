# SPDX-License-Identifier: MIT
"""The guard with iptables leaves other programs' rules unchanged."""

from collections.abc import Iterator

import pytest

from nfq_guard.firewall import Backend
from nfq_guard.lab.netns import Namespace
from tests.support.crossroads import Crossroads
from tests.support.no_harm import NoHarm, configure, without

pytestmark = pytest.mark.kernel

__all__ = ["configure", "without"]


@pytest.fixture(scope="module", params=list(Backend))
def crossroads(request: pytest.FixtureRequest) -> Iterator[Crossroads]:
    with Namespace("peer") as peer, Namespace("host") as host, Namespace("beyond") as beyond:
        made = Crossroads((peer, host, beyond))
        made.load_iptables(Backend(request.param))
        yield made


class TestIptables(NoHarm):
    """With both backends, which the daemon chooses by itself."""
