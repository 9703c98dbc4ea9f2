# SPDX-License-Identifier: MIT
"""Looking flows up in the kernel's connection tracking table."""
