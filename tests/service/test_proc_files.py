# SPDX-License-Identifier: MIT
"""Files of /proc that only root and its group may read, and the daemon's group while it runs."""

import pwd
import sys
from collections.abc import Callable

import pytest

from nfq_guard.lab.netns import Namespace
from nfq_guard.nfqueue.counters import QUEUES
from nfq_guard.service import proc_files
from tests.support.queue import import_path

pytestmark = pytest.mark.kernel

NOBODY = pwd.getpwnam("nobody")
TABLES = QUEUES.parent.parent / "ip_tables_names"


@pytest.fixture
def inside(namespace: Callable[[str], Namespace]) -> Namespace:
    return namespace("proc")


def readable(inside: Namespace, path: str) -> bool:
    """Whether a process with no privilege but the group may read it."""
    done = inside.run(
        "setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups",
        "cat", path, check=False,
    )  # fmt: skip
    return done.returncode == 0


def test_a_group_may_read_them_until_it_may_not(inside: Namespace) -> None:
    inside.run("iptables-legacy", "-t", "mangle", "-S")
    names = ("/proc/net/netfilter/nfnetlink_queue", "/proc/net/ip_tables_names")
    with inside.entered():
        assert proc_files.share(NOBODY.pw_gid) == []
        assert [readable(inside, name) for name in names] == [True, True]
        assert [path.stat().st_mode & 0o777 for path in (QUEUES, TABLES)] == [0o440, 0o440]
        assert proc_files.share(0) == []
        assert [readable(inside, name) for name in names] == [False, False]


def test_other_namespaces_keep_theirs(inside: Namespace) -> None:
    before = QUEUES.stat().st_gid
    with inside.entered():
        proc_files.share(NOBODY.pw_gid)
    assert QUEUES.stat().st_gid == before


def test_a_refusal_is_one_line_for_each_file(inside: Namespace) -> None:
    code = "from nfq_guard.service import proc_files\nprint(*proc_files.share(65534), sep='\\n')"
    done = inside.run(
        "setpriv", "--bounding-set=-chown", "--inh-caps=-all", "--",
        "env", f"PYTHONPATH={import_path()}", sys.executable, "-c", code,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    expected = (
        "/proc/net/netfilter/nfnetlink_queue remains readable by root only: Operation not permitted"
    )
    assert lines[0] == expected
    assert all(
        line.endswith("remains readable by root only: Operation not permitted") for line in lines
    )
