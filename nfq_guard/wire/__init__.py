# SPDX-License-Identifier: MIT
"""Decodes IPv4, IPv6, TCP, UDP and ICMP headers, and reassembles fragments."""
