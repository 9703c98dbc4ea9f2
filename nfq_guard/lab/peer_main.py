# SPDX-License-Identifier: MIT
"""The two peers of a connection, each a process inside its namespace.

`serve ADDRESS PORT BYTES` answers each request with BYTES of data on the same connection.
`ask ADDRESS PORT BYTES RCVBUF OPENING` connects once and sends one request for each line on its
standard input, which holds the number of seconds to wait for the answer. With the opening `fast`
the SYN carries the first request (TCP Fast Open), with `plain` it does not. Both report each event
as one word a line on standard output, and exit at the end of their standard input, so neither
outlives the process that started it.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

_CONNECT_TIMEOUT_S: Final = 3.0
_REQUEST: Final = b"GET / HTTP/1.1\r\n\r\n"


def _report(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _domain(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _exit_at_end_of_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def serve(address: str, port: int, size: int) -> None:
    """Answer requests, one connection after the other, until standard input ends."""
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    with socket.create_server((address, port), family=_domain(address)) as listener:
        # The listener's queue has no effect unless the sysctl of the same name is set.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 1)
        _report("listening")
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    while connection.recv(4096):
                        connection.sendall(b"x" * size)
                    _report("closed")
                except ConnectionError:
                    _report("reset")


def ask(address: str, port: int, size: int, rcvbuf: int, opening: str) -> None:
    """Connect, then send one request for each line on standard input."""
    is_requested = opening == "fast"
    with socket.socket(_domain(address)) as connection:
        if rcvbuf:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_CONNECT_TIMEOUT_S)
        if is_requested:
            _report(_attempt(lambda: _open_fast(connection, (address, port)), "connected"))
        else:
            _report(_attempt(lambda: connection.connect((address, port)), "connected"))
        for line in sys.stdin:
            connection.settimeout(float(line))
            step = _receive if is_requested else _exchange
            _report(_attempt(partial(step, connection, size), "answered"))
            is_requested = False


def _open_fast(connection: socket.socket, server: tuple[str, int]) -> None:
    connection.sendto(_REQUEST, socket.MSG_FASTOPEN, server)


def _exchange(connection: socket.socket, size: int) -> None:
    connection.sendall(_REQUEST)
    _receive(connection, size)


def _receive(connection: socket.socket, size: int) -> None:
    left = size
    while left:
        received = connection.recv(min(left, 65536))
        if not received:
            raise ConnectionResetError
        left -= len(received)


def _attempt(act: Callable[[], None], word: str) -> str:
    try:
        act()
    except ConnectionError:
        return "reset"
    except TimeoutError:
        return "timeout"
    return word


def main(arguments: Sequence[str]) -> None:
    """Run as the server or the client."""
    role, address, port, *words = arguments
    if role == "serve":
        serve(address, int(port), int(words[0]))
    else:
        size, rcvbuf, opening = words
        ask(address, int(port), int(size), int(rcvbuf), opening)


if __name__ == "__main__":
    main(sys.argv[1:])
