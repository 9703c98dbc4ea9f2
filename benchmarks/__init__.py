# SPDX-License-Identifier: MIT
"""What each mitigation costs, measured; `python -m benchmarks --help`."""
