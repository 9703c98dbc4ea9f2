# SPDX-License-Identifier: MIT
"""Captures followed by our own conntrack."""
