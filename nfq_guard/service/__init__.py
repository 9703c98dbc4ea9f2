# SPDX-License-Identifier: MIT
"""The daemon: queue, judgment and telemetry in one loop."""
