# SPDX-License-Identifier: MIT
"""Replay: what a kernel would have called INVALID in a capture, and why."""
