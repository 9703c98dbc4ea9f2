# SPDX-License-Identifier: MIT
"""Measures the cost of each mitigation; see `python -m benchmarks --help`."""
