# SPDX-License-Identifier: MIT
"""The keys of a policy and how large what they hold may be; for the parser and the schema."""

from typing import Final

from nfq_guard.policy.fields import FIELD_BY_NAME
from nfq_guard.policy.model import RULE_DEFAULT, RULE_ON_UNKNOWN

# Nesting of includes is bounded besides cycles: each level is a file that somebody must read.
DEEPEST_INCLUDE: Final = 8
# Rules of a policy with all that it includes: what bounds its memory and the time of a reload.
MOST_RULES: Final = 1000

POLICY_KEYS: Final = ("include", "on_unknown", "default", "i_know", "rule")
RULE_KEYS: Final = ("name", "comment", "action", "mark", "rate", "not", *FIELD_BY_NAME)
RATE_KEYS: Final = ("over", "in_s", "by")

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
RESERVED_NAMES: Final = (RULE_DEFAULT, RULE_ON_UNKNOWN)
LONGEST_COMMENT: Final = 500
LARGEST_COUNT: Final = 1_000_000
LONGEST_WINDOW_S: Final = 3600
