# SPDX-License-Identifier: MIT
"""Measures the cost of one decision with 1, 10, 100 and 500 rules.

    python benchmarks/policy.py [--json FILE]

`first` is a packet that the first rule matches, `last` one that only the last rule matches, `none`
one that no rule matches. In `networks` every rule has a network, a range of ports and a direction;
in `names` an interface and a mark as well. `default` is the default policy with a translated flow.
"""

import argparse
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from nfq_guard.finding import Breach, Finding, Reason
from nfq_guard.flow import IPS_DST_NAT, Evidence, FlowSnapshot, FlowTuple
from nfq_guard.policy import matcher as compiled
from nfq_guard.policy.default import default_policy
from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.parse import parse_policy
from nfq_guard.seqno import seq
from nfq_guard.wire.packet import ACK, Packet, Queued, Segment

RULES: Final = (1, 10, 100, 500)
_ROUNDS: Final = 7
_DECISIONS: Final = 20_000


class Line(NamedTuple):
    """One measurement."""

    policy: str
    rules: int
    packet: str
    nanoseconds: float


def measure() -> list[Line]:
    """Run all measurements."""
    default = default_policy()
    lines = [Line("default", len(default.model.rules), "translated", _cost(default, 1))]
    for kind in ("networks", "names"):
        for rules in RULES:
            policy = _policy(kind, rules)
            packets = {"first": 0, "last": rules - 1, "none": 60_000}
            lines += [
                Line(kind, rules, packet, _cost(policy, number))
                for packet, number in packets.items()
            ]
    return lines


def _policy(kind: str, rules: int) -> CompiledPolicy:
    made: list[dict[str, object]] = []
    for number in range(rules):
        rule: dict[str, object] = {
            "action": "drop",
            "src": f"10.{number >> 8}.{number & 255}.0/24",
            "dport": f"{number}..{number + 1000}",
            "direction": "reply",
        }
        if kind == "names":
            rule |= {"in": f"veth{number}*", "packet_mark": f"{number}/0xffff"}
        made.append(rule)
    return compile_policy(parse_policy({"default": "allow", "rule": made}, source="benchmark"))


def _cost(policy: CompiledPolicy, number: int) -> float:
    src = bytes([10, number >> 8, number & 255, 1])
    dst = bytes([10, 255, 255, 255])
    segment = Segment(40000, number, seq(1), seq(1), ACK, 512, 100, b"", 0)
    packet = Packet(4, src, dst, 6, 140, 20, 64, 0, False, segment)  # noqa: FBT003 - more_fragments
    way = FlowTuple(6, src, dst, 40000, number)
    snapshot = FlowSnapshot(Evidence.BPF, 1, way, way, IPS_DST_NAT, 0, 0, 60, 3, None)
    finding = Finding(Reason.SEQ_OVER, Breach(Reason.SEQ_OVER, seq(9), seq(4), 5))
    queued = Queued(b"", 0, f"veth{number}", "", number, 0)

    def decide() -> None:
        policy.decide(queued, packet, snapshot, finding, 0.0)

    return _nanoseconds(decide) - _nanoseconds(_nothing)


def _nothing() -> None:
    """Cost of the measurement itself."""


def _nanoseconds(work: Callable[[], None]) -> float:
    rounds = timeit.repeat(work, number=_DECISIONS, repeat=_ROUNDS)
    return min(rounds) / _DECISIONS * 1e9


def main() -> None:
    """Print a table; with `--json`, also write JSON."""
    parser = argparse.ArgumentParser(description="Measure the cost of one decision.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    is_compiled = not str(compiled.__file__).endswith(".py")
    lines = measure()
    how = "compiled" if is_compiled else "interpreted"
    print(f"Python {sys.version.split()[0]}, {how}, best of {_ROUNDS} x {_DECISIONS} decisions")
    print(f"{'policy':<10}{'rules':>6}  {'packet':<12}{'ns':>7}")
    for line in lines:
        print(f"{line.policy:<10}{line.rules:>6}  {line.packet:<12}{line.nanoseconds:>7.0f}")
    if args.json:
        figures = [line._asdict() for line in lines]
        report = {"benchmark": "policy", "compiled": is_compiled, "figures": figures}
        args.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
