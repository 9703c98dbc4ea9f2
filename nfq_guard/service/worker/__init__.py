# SPDX-License-Identifier: MIT
"""One queue: judging its packets, logging, offload and the flow history."""
