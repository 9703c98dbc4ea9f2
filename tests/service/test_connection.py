# SPDX-License-Identifier: MIT
"""The states of a client, and the table of their transitions."""

import itertools
import socket

import pytest

from nfq_guard.service.control.connection import (
    INTEREST,
    TRANSITIONS,
    Connection,
    Interest,
    State,
)
from nfq_guard.service.loop import Loop


def test_transitions_are_total() -> None:
    assert set(TRANSITIONS) == set(State) == set(INTEREST)
    assert TRANSITIONS[State.CLOSED] == set()
    assert all(State.CLOSED in TRANSITIONS[state] for state in set(State) - {State.CLOSED})


@pytest.mark.parametrize(("before", "to"), list(itertools.product(State, State)))
def test_every_transition(before: State, to: State) -> None:
    """A forbidden transition changes nothing; an allowed one changes what the loop watches."""
    ours, theirs = socket.socketpair()
    with Loop() as loop, theirs:
        called: list[Connection] = []
        connection = Connection(ours, loop, called.append)
        for step in PATHS[before]:
            assert connection.move(step)
        allowed = to is before or to in TRANSITIONS[before]
        assert connection.move(to) is allowed
        assert connection.state is (to if allowed else before)
        if connection.state is not State.CLOSED:
            loop.turn(0)
            assert bool(called) is (INTEREST[connection.state] is Interest.WRITABLE)
            called.clear()
            theirs.send(b"x")
            loop.turn(0)
            assert bool(called) is (INTEREST[connection.state] is not Interest.NOTHING)
            assert connection.move(State.CLOSED)


PATHS = {
    State.READING: (),
    State.WAITING: (State.WAITING,),
    State.QUEUED: (State.WAITING, State.QUEUED),
    State.DEAF: (State.WAITING, State.DEAF),
    State.WRITING: (State.WRITING,),
    State.PARKED: (State.PARKED,),
    State.CLOSED: (State.CLOSED,),
}
