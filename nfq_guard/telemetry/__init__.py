# SPDX-License-Identifier: MIT
"""Events and metrics: writing, limiting and reading them."""
