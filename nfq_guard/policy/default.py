# SPDX-License-Identifier: MIT
"""The policy of a daemon whose configuration has none.

`rules/policy/default.toml` is the same policy with the reason for each rule; a test compares the
two. It is also code, so that the daemon protects without reading another file.
"""

from typing import Final

from nfq_guard.policy.matcher import CompiledPolicy, compile_policy
from nfq_guard.policy.model import PolicyModel
from nfq_guard.policy.parse import parse_policy

DEFAULT_SOURCE: Final = "preset:default"

DEFAULT_TABLE: Final[dict[str, object]] = {
    "rule": [
        {
            "name": "broken",
            "reason": ["bad-flags", "bad-checksum", "malformed"],
            "action": "drop",
        },
        {
            "name": "lost-window",
            "nat": ["snat", "dnat", "both"],
            "rate": {"over": 1, "in_s": 60, "by": "segment"},
            "action": "heal",
        },
        {
            "name": "stuck",
            "nat": ["snat", "dnat", "both"],
            "evidence": ["kernel-log", "ctnetlink"],
            "reason": ["seq-over", "ack-over", "seq-under", "ack-under", "unsupported"],
            "rate": {"over": 4, "in_s": 60, "by": "segment"},
            "action": "log",
        },
        {"name": "translated", "nat": ["snat", "dnat", "both"], "action": "drop"},
        {
            "name": "window",
            "reason": [
                "seq-over",
                "ack-over",
                "seq-under",
                "ack-under",
                "rst-outside",
                "bad-tag",
            ],
            "action": "allow",
        },
        {"name": "transition", "reason": "bad-transition", "action": "allow"},
        {"name": "no-entry", "reason": "no-entry", "action": "allow"},
        {"name": "raced", "reason": "raced", "action": "allow"},
        {"name": "icmp-unrelated", "reason": "icmp-unrelated", "action": "allow"},
        {"name": "icmp-mismatch", "reason": "icmp-mismatch", "action": "allow"},
    ],
    "on_unknown": "allow",
    "default": "allow",
}


def default_model() -> PolicyModel:
    """The default policy as parsed from a file."""
    return parse_policy(DEFAULT_TABLE, source=DEFAULT_SOURCE)


def default_policy() -> CompiledPolicy:
    """The default policy, compiled."""
    return compile_policy(default_model())
