# SPDX-License-Identifier: MIT
"""What the guard tells the world: events, metrics."""
