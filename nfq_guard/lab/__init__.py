# SPDX-License-Identifier: MIT
"""Small networks in namespaces, in which each classic reset happens for real."""
