# SPDX-License-Identifier: MIT
"""Conntrack as the kernel does it, without the kernel; written from measurements of it."""
