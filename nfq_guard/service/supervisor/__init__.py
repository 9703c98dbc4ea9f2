# SPDX-License-Identifier: MIT
"""Several queues: worker processes, their messages, and the process that supervises them."""
