# SPDX-License-Identifier: MIT
"""Reloads while packets flow: each packet is judged by one policy as a whole."""

import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nfq_guard.lab.netns import Namespace
from tests.support.queue import PORT, QUEUE, Datagrams, GuardProcess, kernel_line, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.no_cover]
Make = Callable[[str], Namespace]

# `make faults` makes a thousand.
RELOADS = 300
# The rule of each policy sets its own mark, so that a policy applied in part would be noticed.
MARKS = {"red": 0x11, "blue": 0x22}


def policy(colour: str) -> str:
    """A policy of a hundred rules that do not match and one that does."""
    others = "".join(
        f'[[policy.rule]]\nname = "{colour}-{number}"\nsport = {number}\naction = "drop"\n'
        for number in range(1, 101)
    )
    return (
        f'[policy]\ndefault = "drop"\non_unknown = "log"\n{others}'
        f'[[policy.rule]]\nname = "{colour}"\ndport = {PORT}\n'
        f'action = "log"\nmark = {MARKS[colour]}\n'
    )


def counted(namespace: Namespace) -> dict[str, int]:
    """Packets by their mark after the queue."""
    found = {}
    for line in namespace.run("iptables-save", "-c", "-t", "mangle").stdout.splitlines():
        for colour, mark in MARKS.items():
            if line.startswith("[") and f"--mark {mark:#x}" in line:
                found[colour] = int(line[1:].partition(":")[0])
        if line.startswith("[") and "NFQUEUE" in line:
            found["queued"] = int(line[1:].partition(":")[0])
    return found


def reload_often(
    guard: GuardProcess, control: Path, config: Path, texts: list[str]
) -> dict[str, int]:
    """Write one text after the other, and wait for each reload; returns counts of the outcomes."""
    outcomes = {"OK": 0, "NOK": 0}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(control))
        answers = connection.makefile()
        for number in range(RELOADS):
            fresh = config.with_name("fresh")
            fresh.write_text(texts[number % len(texts)])
            fresh.replace(config)
            if number % 5 == 0:
                guard.process.send_signal(signal.SIGHUP)
            connection.sendall(b'{"command": "reload", "arguments": {"wait": true}}\n')
            outcomes[json.loads(answers.readline())["return"]] += 1
        answers.close()
    return outcomes


def test_reloads_under_load(namespace: Make, tmp_path: Path) -> None:
    inside = namespace("reload")
    queue = ["-j", "NFQUEUE", "--queue-num", str(QUEUE)]
    inside.run("iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "udp", *queue)
    for mark in MARKS.values():
        words = ["-m", "mark", "--mark", hex(mark), "-j", "ACCEPT"]
        inside.run("iptables", "-t", "mangle", "-A", "POSTROUTING", "-p", "udp", *words)
    control = tmp_path / "s"
    head = (
        f'[daemon]\nqueue = {QUEUE}\nmode = "enforce"\nfail_mode = "closed"\nrules = "none"\n'
        f'log_events_per_s = 0\nqueue_length = 8192\ncontrol_socket = "{control}"\n'
    )
    texts = [head + policy("red"), head + policy("blue"), head + '[policy]\ndefault = "half"\n']
    config = tmp_path / "c.toml"
    config.write_text(texts[0])
    sent = 0
    done = threading.Event()

    with (
        Datagrams(inside) as udp,
        GuardProcess(inside, tmp_path / "log", "--config", str(config)).ready() as guard,
    ):
        arrived: list[int] = []

        def flow() -> None:
            nonlocal sent
            while not done.is_set():
                udp.send(5)
                sent += 5
                arrived.extend(udp.received())
                done.wait(0.002)

        sender = threading.Thread(target=flow)
        sender.start()
        outcomes = reload_often(guard, control, config, texts)
        done.set()
        sender.join()
        wait_for(lambda: kernel_line(inside).waiting == 0)
        arrived += udp.received()
        line = kernel_line(inside)
        by_colour = counted(inside)
        assert guard.stop() == 0
        (stopped,) = guard.events("stopped")
    assert outcomes == {"OK": sum(n % 3 != 2 for n in range(RELOADS)), "NOK": RELOADS // 3}
    assert stopped["reloads"] + stopped["reload_failures"] >= RELOADS
    assert (line.queue_dropped, line.user_dropped) == (0, 0)
    assert stopped["packets"] == by_colour["queued"] == sent == len(arrived)
    assert by_colour["red"] + by_colour["blue"] == sent, "a packet without the mark of its policy"
    assert by_colour["red"] > 0
    assert by_colour["blue"] > 0
    assert set(stopped["rules"]) == set(MARKS)
    assert stopped["rules"] == {colour: by_colour[colour] for colour in MARKS}
