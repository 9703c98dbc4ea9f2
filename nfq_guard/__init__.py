# SPDX-License-Identifier: MIT
"""Judge the packets that conntrack calls INVALID by the kernel's own TCP window."""

__version__ = "0.1.0"
