# SPDX-License-Identifier: MIT
"""Octets to values: IPv4, IPv6, TCP, UDP and ICMP headers, no further."""
