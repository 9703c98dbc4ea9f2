# SPDX-License-Identifier: MIT
"""Evaluates policies on recorded packets."""
