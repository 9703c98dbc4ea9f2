# SPDX-License-Identifier: MIT
"""A model of the kernel's conntrack, written from measurements."""
