# SPDX-License-Identifier: MIT
"""What to do with an INVALID packet: ordered rules, first match wins."""
