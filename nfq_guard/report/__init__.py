# SPDX-License-Identifier: MIT
"""Recorded events as one page that can be mailed: no scripts, nothing loaded from elsewhere."""
