# SPDX-License-Identifier: MIT
"""What to do with an INVALID packet: ordered rules, first match wins.

`parse.parse_policy` reads the `[policy]` table of a file, `compiled.compile_policy` makes it ready
for the packet path, `default.default_policy` is what protects when nothing is said.
"""
