# SPDX-License-Identifier: MIT
"""Sockets from the service manager, which begin at descriptor 3, in a separate process."""

import os
import socket
import subprocess
import sys

import pytest

_CODE = """
import os, sys
from nfq_guard.service.activation import take_sockets
if sys.argv[1] != "other":
    os.environ["LISTEN_PID"] = str(os.getpid())
found = take_sockets("metrics")
print([one.fileno() for one in found], [one.getsockname()[1] for one in found],
      [os.get_inheritable(one.fileno()) for one in found], take_sockets("metrics"),
      [name for name in os.environ if name.startswith("LISTEN_")])
"""


@pytest.mark.parametrize(
    ("names", "pid", "taken"),
    [
        ("metrics", "own", [3]),
        ("other:metrics", "own", [4]),
        ("metrics:metrics", "own", [3, 4]),
        ("other", "own", []),
        ("metrics", "other", []),
    ],
)
def test_sockets_of_a_name(names: str, pid: str, taken: list[int]) -> None:
    count = names.count(":") + 1
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = [one.getsockname()[1], two.getsockname()[1]]
        shell = f'exec 3<&{one.fileno()} 4<&{two.fileno()}; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", shell, "bash", sys.executable, "-c", _CODE, pid],
            env={
                **os.environ,
                "LISTEN_FDS": str(count),
                "LISTEN_FDNAMES": names,
                "LISTEN_PID": "1",
            },
            pass_fds=(one.fileno(), two.fileno()),
            capture_output=True,
            text=True,
            check=True,
        )
    listed = [ports[fd - 3] for fd in taken]
    assert done.stdout == f"{taken} {listed} {[False] * len(taken)} [] []\n"


def test_without_a_service_manager() -> None:
    code = "from nfq_guard.service.activation import take_sockets; print(take_sockets('metrics'))"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
