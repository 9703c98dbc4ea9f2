# SPDX-License-Identifier: MIT
"""Decodes headers of IPv4, IPv6, TCP, UDP, SCTP, GRE and ICMP, and reassembles fragments."""
