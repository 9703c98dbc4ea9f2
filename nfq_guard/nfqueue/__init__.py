# SPDX-License-Identifier: MIT
"""The kernel's packet queue: reads packets and sends verdicts."""
