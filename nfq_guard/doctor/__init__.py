# SPDX-License-Identifier: MIT
"""Looks for what keeps this host from telling INVALID packets apart; changes nothing."""
