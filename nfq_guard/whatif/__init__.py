# SPDX-License-Identifier: MIT
"""What other policies would have done to packets that were recorded."""
