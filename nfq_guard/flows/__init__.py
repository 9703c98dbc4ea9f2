# SPDX-License-Identifier: MIT
"""Looks flows up in the kernel's connection tracking table."""
