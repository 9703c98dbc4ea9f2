# SPDX-License-Identifier: MIT
"""What to do with an INVALID packet: ordered rules, first match wins.

`parse.parse_policy` reads the `[policy]` table of a file, `matcher.compile_policy` compiles it for
the packet path, `default.default_policy` is the policy of a daemon without one.
"""
