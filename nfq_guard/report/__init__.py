# SPDX-License-Identifier: MIT
"""Renders recorded events as one self-contained HTML page from templates."""
