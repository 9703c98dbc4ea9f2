# SPDX-License-Identifier: MIT
"""Our own chains in the packet filter, and nothing else's."""
