# SPDX-License-Identifier: MIT
"""Packets in the kernel's log: what its lines say, and what they prove."""
