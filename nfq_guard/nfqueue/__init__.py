# SPDX-License-Identifier: MIT
"""The kernel's packet queue: reading it, and answering each packet."""
