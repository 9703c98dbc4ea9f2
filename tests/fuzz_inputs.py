# SPDX-License-Identifier: MIT
"""Damages what the daemon and its commands read from others: `make fuzz-inputs`.

Configurations, control requests, messages between processes, netlink messages, events, lines of the
kernel's log and files of the container runtime: each is read or refused in the way that its reader
declares. Ends with status 1 at the first input that raises anything else, and prints it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from nfq_guard.conntrack.log_text import parse_ignored, parse_log
from nfq_guard.errors import ConfigError
from nfq_guard.flows.ctnetlink import snapshot_of
from nfq_guard.kernlog.groups import Groups
from nfq_guard.kernlog.lines import LogReader
from nfq_guard.netlink.messages import attribute, elements, messages
from nfq_guard.nfqueue import requests
from nfq_guard.nfqueue.message import InterfaceNames, packet_of, stamp_of
from nfq_guard.policyfile import preset_names
from nfq_guard.service.config import load_config
from nfq_guard.service.control.commands import COMMANDS
from nfq_guard.service.supervisor.messages import daemon_channel, pair, worker_channel
from nfq_guard.service.worker.pods import PodFiles
from nfq_guard.telemetry.reader import EventReader
from tests.kernlog.test_why import tcp
from tests.service.test_messages import ENCODED
from tests.support.cni import cached, write
from tests.support.control import Served
from tests.support.ctnetlink import WANTED, entry
from tests.support.event_examples import examples

_POLICIES: Final = Path(__file__).parents[1] / "nfq_guard" / "policy" / "presets"


class Target(NamedTuple):
    """One reader.

    Attributes:
        read: Reads one input.
        seeds: Inputs that it takes, to damage.
        weight: How often it is chosen; one that talks to a socket takes longer.
    """

    read: Callable[[bytes], object]
    seeds: list[bytes]
    weight: int = 10


def targets(folder: Path, stack: contextlib.ExitStack) -> dict[str, Target]:
    """Every reader of what others write, by name."""
    return {
        "configuration": _configuration(folder),
        "control": _control(folder, stack),
        "reports": _channel(stack, of_daemon=True),
        "orders": _channel(stack, of_daemon=False),
        "netlink": _netlink(),
        "log": _log(),
        "events": _events(),
        "pods": _pods(folder),
    }


def _configuration(folder: Path) -> Target:
    path = folder / "c.toml"

    def read(octets: bytes) -> None:
        path.write_bytes(octets)
        with contextlib.suppress(ConfigError):
            load_config(path)

    daemon = b'[daemon]\nmode = "enforce"\nqueue = 3\nfail_mode = "closed"\nlog = "/dev/null"\n'
    rule = b'[policy]\ndefault = "drop"\n[[policy.rule]]\nname = "a"\nsport = [1, "7-9"]\n'
    seeds = [daemon, daemon + rule + b'reason = "seq-over"\naction = "log"\n']
    seeds += [f'[policy]\ninclude = "preset:{name}"\n'.encode() for name in preset_names()]
    seeds += [b"[policy]\n" + path.read_bytes() for path in sorted(_POLICIES.glob("*.toml"))]
    return Target(read, seeds, weight=3)


def _control(folder: Path, stack: contextlib.ExitStack) -> Target:
    served = Served(folder / "control.sock")
    stack.callback(served.loop.close)
    stack.callback(served.server.close)

    def read(octets: bytes) -> None:
        with served.connect() as client, contextlib.suppress(BlockingIOError):
            client.send(octets)
            served.turns(3)
        served.turns(1)

    seeds = [f'{{"command": "{name}"}}\n'.encode() for name in COMMANDS]
    seeds.append(b'{"command": "dump", "arguments": {"address": "::1", "flows": 3}}\n')
    seeds.append(b'{"command": "mode", "arguments": {"mode": "enforce"}}\n')
    return Target(read, seeds, weight=1)


def _channel(stack: contextlib.ExitStack, *, of_daemon: bool) -> Target:
    ours, theirs = pair()
    stack.callback(theirs.close)
    made = daemon_channel if of_daemon else worker_channel
    channel = made(ours, lambda _: None, lambda _: None)
    stack.callback(channel.close)

    def read(octets: bytes) -> None:
        if octets:
            theirs.send(octets[:4096])
            assert channel.receive() is not None, "taken for the end"

    orders = [msgspec.msgpack.encode({"type": name}) for name in ("Stop", "SetMode", "Prepare")]
    return Target(read, ENCODED if of_daemon else ENCODED + orders)


def _netlink() -> Target:
    names = InterfaceNames()

    def read(octets: bytes) -> None:
        for _, _, body in messages(octets):
            list(elements(body))
        requests.error_of(octets)
        snapshot_of(octets, WANTED)
        # A queue's message stands in a slot, and never is shorter than its headers.
        slot = octets[:700] + bytes(max(0, 40 - len(octets)))
        packet_of(slot + bytes(64), 0, len(slot), names)
        stamp_of(slot + bytes(64), 0, len(slot))

    packet = bytes(20) + attribute(1, bytes(7)) + attribute(10, bytes(60)) + attribute(5, bytes(4))
    return Target(
        read,
        [
            *(packet, entry(1), entry(1)[16:], requests.config_flags(3, 1)),
            requests.config_queue(7, 256, 4096, bind=True),
        ],
    )


def _log() -> Target:
    def read(octets: bytes) -> None:
        groups = Groups()
        for packet in LogReader().read(io.BytesIO(octets)):
            groups.add(packet)
        text = octets.decode("utf-8", "replace")
        for passes in (False, True):
            parse_log(text, old_segments_pass=passes)
        parse_ignored(text)

    texts = (
        "nf_ct_proto_6: invalid new ",
        "nf_ct_proto_6: SEQ is over upper bound 1001 ",
        "nf_ct_proto_6: packet (index 3) in dir 0 invalid, state 4 ",
    )
    return Target(read, [tcp(text).encode() for text in texts])


def _events() -> Target:
    def read(octets: bytes) -> None:
        list(EventReader().read(io.BytesIO(octets)))

    return Target(read, [msgspec.json.encode(one) + b"\n" for one in examples()])


def _pods(folder: Path) -> Target:
    place = folder / "results"
    place.mkdir()
    file = write(place, "cart-0", "10.0.0.1/24", "fd00::1/64")

    def read(octets: bytes) -> None:
        file.write_bytes(octets)
        found = PodFiles(place).read()
        assert found is not None
        assert found.skipped == bool(found.problem)
        for pod in found.pods.values():
            assert f"{pod.namespace}{pod.name}{pod.container}".isprintable()

    return Target(read, [file.read_bytes(), json.dumps(cached("other", "::1/128")).encode()])


_NUMBERS: Final = (b"0", b"-1", b"65536", b"4294967296", b"9" * 40, b"1e308", b"null", b"[]", b'""')


def damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, of which octets are changed, cut, repeated, or joined with another."""
    octets = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(octets) + 1)
        kind = rng.randrange(7)
        if kind == 0 and octets:
            octets[at - 1] = rng.randrange(256)
        elif kind == 1 and octets:
            octets[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del octets[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            octets[at:at] = octets[at : at + rng.randrange(1, 40)] * rng.randrange(1, 4)
        elif kind == 4:
            octets[at : at + rng.randrange(8)] = rng.choice(_NUMBERS)
        elif kind == 5:
            other = rng.choice(seeds)
            octets[at:] = other[rng.randrange(len(other)) :]
        else:
            octets[at:at] = os.fsencode(chr(rng.randrange(0x80, 0xD800))) + b"\0\x1b"
    return bytes(octets)


def fuzz(seed: int, inputs: int) -> dict[str, int]:
    """Read so many inputs. Returns how many of each target.

    Raises:
        AssertionError: A reader raised; the message has the input.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="nfqg-fuzz-") as folder, contextlib.ExitStack() as all_:
        found = targets(Path(folder), all_)
        names, weights = list(found), [one.weight for one in found.values()]
        for number in range(inputs):
            (name,) = rng.choices(names, weights)
            octets = damaged(rng, found[name].seeds)
            try:
                found[name].read(octets)
            except Exception as error:
                raise AssertionError(
                    f"{name}, input {number} of seed {seed}: {octets!r}"
                ) from error
            counts[name] = counts.get(name, 0) + 1
    return counts


def main() -> int:
    """Read damaged inputs, and say how many."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_inputs", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    args = parser.parse_args()
    begun = time.monotonic()
    counts = fuzz(args.seed, args.inputs)
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    sys.stdout.write(f"{each}: all read or refused, {time.monotonic() - begun:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
